"""One optimiser step, and the training loops of learners from scores and from pairs."""
