"""What was written and what was said about it: rollouts, pairs, rounds, and the numbers that describe them."""
