"""The cost of whole commands: start-up, memory, scale, loading, scoring."""
