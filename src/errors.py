"""The one exception for what a user can fix: a parameter, a path, a file, a table."""

from collections.abc import Callable


class UserError(ValueError):
    """Says which file or parameter is wrong, what was expected, and what to do.

    The scripts print it, with the flag in place of the parameter, and exit with 2.

    Args:
        message: a sentence or two; it begins with the file's name where a file is at fault.
        parameter: the argument at fault, by its name in Python; None where there is none.
        value: what it was; None leaves it out of the text.

    Example:
        >>> print(UserError("expected at least 32 pixels", parameter="img_size", value=16))
        img_size 16: expected at least 32 pixels
    """

    def __init__(self, message: str, parameter: str | None = None, value: object = None) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value

    def describe(self, rename: Callable[[str], str] = str) -> str:
        """The whole text; ``rename`` turns the parameter's name into a flag's, for instance."""
        if self.parameter is None:
            return self.args[0]
        value = "" if self.value is None else f" {self.value}"
        return f"{rename(self.parameter)}{value}: {self.args[0]}"

    def __str__(self) -> str:
        return self.describe()
