"""Images in, results out: reading, planning, rendering, matting."""
