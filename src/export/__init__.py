"""Networks for other runtimes, each checked before it is kept."""
