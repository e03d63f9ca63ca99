"""The protocol of one paper, at any size: see `humor_env.experiments.reproduction.reproduce`."""
