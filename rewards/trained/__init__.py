"""Scoring heads trained on people's grades and pairs: their data, losses, training, and distillation."""
