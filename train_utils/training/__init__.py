"""A training run: loss, loop, checkpoints and records."""
