"""What every run has, whatever it learns by: settings, checkpoints, logs, limits, the monitor, several processes."""
