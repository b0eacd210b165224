"""All that a run needs beside the network: losses, measures, the loop, checkpoints, records."""
