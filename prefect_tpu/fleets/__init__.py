"""Where slices come from: Ray's, simulated, queued. Runs: driver."""
