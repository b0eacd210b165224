"""Image in, map out: one predictor, many images at once, video."""
