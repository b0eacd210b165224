"""The quality of results: outlines, colours, pictures to look at."""
