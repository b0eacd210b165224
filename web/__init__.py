"""The page of app.py."""
