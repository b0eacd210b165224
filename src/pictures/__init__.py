"""Pictures in, results out: reading, rendering, matting."""
