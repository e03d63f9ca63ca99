"""What a causal language model finds probable: as a measure of texts, and as a critic."""
