"""The contract check of learners: short runs in the pocket world, and what must hold between them."""
