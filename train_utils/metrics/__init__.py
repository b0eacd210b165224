"""Scores of maps, and the tables and plots made from them."""
