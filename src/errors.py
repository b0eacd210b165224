"""The one exception for what a user can fix: a flag, a path, a file, a table."""


class UserError(ValueError):
    """Says which file or flag is wrong and what to do; the scripts print it and exit with 2."""

    def said(self) -> str:
        """The text alone: out of a loader's process it comes wrapped in that one's traceback."""
        return str(self).rpartition("UserError: ")[2].strip()
