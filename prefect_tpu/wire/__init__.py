"""How values travel between driver and hosts: pickling, buffers, channel; both ends. Runs: driver, agent, host process."""
