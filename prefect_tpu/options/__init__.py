"""Every option once: types, limits, defaults, words. Runs: driver."""
