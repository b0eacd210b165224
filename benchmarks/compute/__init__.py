"""The cost of networks: inference and training steps, and other runtimes."""
