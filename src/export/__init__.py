"""Networks for other runtimes, each file checked before it is kept."""
