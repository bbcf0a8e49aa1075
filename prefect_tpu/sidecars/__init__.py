"""Programs of their own beside the driver; each has a main, none is imported by the rest. Runs: side process."""
