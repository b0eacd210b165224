"""Measures of a map against its mask; a folder above, they are evaluated, added up, reported."""
