"""All attempts of one gang: plan, agents, one attempt, health, results. Runs: driver."""
