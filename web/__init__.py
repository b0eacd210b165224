"""The web page and HTTP API of app.py."""
