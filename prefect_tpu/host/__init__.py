"""The agent on a TPU host: zygotes, attempts, devices, metadata. Runs: agent (a Ray actor on the host)."""
