"""The connected Ray cluster, and every private name of Ray. Runs: driver, agent, sidecars.

Nothing is imported here: hosts load the modules one by one.
"""
