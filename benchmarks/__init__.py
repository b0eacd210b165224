"""Speed and memory, each as a ratio against the tutorial code's way measured in the same run."""
