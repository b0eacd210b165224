"""Speed and memory relative to the tutorials' code, measured in the same run."""
