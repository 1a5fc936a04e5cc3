"""Training: the loop, its arguments, and checkpoints."""
