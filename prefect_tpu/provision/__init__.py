"""What to create in a cloud, and doing it; no Ray, no Prefect. Runs: driver."""
