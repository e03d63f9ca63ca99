"""Probabilities of a causal language model, as a measure of texts and as a critic."""
