"""Servers that tests ask: app.py, the page for browsers, and a release with weights."""
