"""Weights files of every kind, in and out."""
