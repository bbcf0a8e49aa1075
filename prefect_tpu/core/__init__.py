"""Values and decisions, standard library alone, no I/O and no clock. Runs: everywhere."""
