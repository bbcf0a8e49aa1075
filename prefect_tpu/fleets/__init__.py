"""Where slices come from: Ray's, simulated, queued; talks to the sidecars. Runs: driver."""
