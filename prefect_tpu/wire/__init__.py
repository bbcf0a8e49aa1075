"""How values travel: pickling, buffers, channel; both ends. Runs: driver, agent, host process."""
