"""How values travel between driver and hosts: pickling, buffers, channel. Runs: driver, agent, host process."""
