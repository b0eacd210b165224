"""Picture in, map out: one predictor, many pictures at once, video."""
