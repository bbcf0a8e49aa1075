"""`python -m prefect_tpu.cli`."""

from prefect_tpu.cli import main

main()
