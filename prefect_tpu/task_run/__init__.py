"""One task run of a gang in Prefect's engine: the task, the runner's threads, retries, cache. Runs: driver."""
