"""Who has which slice, and for how long. Runs: driver."""
