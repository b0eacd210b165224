"""A run: its loss, its loop, its checkpoints, its records."""
