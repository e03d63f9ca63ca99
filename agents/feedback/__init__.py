"""Generated lines and their judgements: rollouts, pairs, rounds, and metrics."""
