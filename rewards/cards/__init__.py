"""Critic cards: agreement with people, known hacks, and failures of each critic."""
