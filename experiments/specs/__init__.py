"""Experiment files, the settings of learners, and their TOML."""
