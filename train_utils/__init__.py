"""All that a run needs besides the network: losses, measures, the loop, checkpoints, records."""
