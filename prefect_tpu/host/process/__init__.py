"""The zygote and what is forked from it, without Ray. Runs: host process."""
