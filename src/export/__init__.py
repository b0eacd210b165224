"""Export to other runtimes; each file is checked before it is kept."""
