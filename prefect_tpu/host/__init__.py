"""The agent on a TPU host, a Ray actor: zygotes, attempts, devices, metadata. Runs: agent."""
