"""Speed and memory, each as a ratio to the tutorials' code measured in the same run."""
