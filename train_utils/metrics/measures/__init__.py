"""Measures of a map against its mask; the package above evaluates, sums and reports them."""
