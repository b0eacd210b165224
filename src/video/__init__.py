"""Videos: frames in, results out."""
