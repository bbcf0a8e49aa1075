"""What people see: logs, states, events, artifacts, pictures. Runs: driver."""
