"""What networks cost: inference and training steps, and other runtimes."""
