"""What is asked: experiment files, the settings of learners, and their TOML."""
