"""Training: the loop, checkpoints and the arguments of recipes."""
