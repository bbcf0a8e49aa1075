"""The connected Ray cluster, the only folder with Ray's private names. Runs: driver, agent, side process."""
