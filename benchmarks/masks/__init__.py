"""The quality of results: outlines, colours, figures."""
