"""Processes, ports and starting programs, standard library alone. Runs: everywhere."""
