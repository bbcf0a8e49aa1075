"""What to create in a cloud, and doing it; knows no Ray and no Prefect. Runs: driver, on one thread of each fleet."""
