"""Pairs of image and mask: found, checked, read, augmented, batched."""
