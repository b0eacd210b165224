"""Scores of maps, and the tables and plots made of them."""
