"""Programs of their own beside the driver; started, never imported by the rest. Runs: side process."""
