"""What whole commands cost: start-up, memory, scale, loading, scoring."""
