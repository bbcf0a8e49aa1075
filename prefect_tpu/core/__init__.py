"""Values and decisions, standard library alone, no I/O. Runs: everywhere."""
