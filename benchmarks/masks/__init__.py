"""What the results are worth: outlines, colours, pictures to look at."""
