"""The zygote and what is forked from it; no Ray. Runs: host process."""
