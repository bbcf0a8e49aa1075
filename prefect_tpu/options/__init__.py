"""Every option once: type, limits, default, words. Runs: driver."""
