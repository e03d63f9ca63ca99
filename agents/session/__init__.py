"""Common to every run: settings, checkpoints, logs, limits, the monitor, multiple processes."""
