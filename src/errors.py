"""The exception for everything that a user can fix: a parameter, a path, a file, a table."""

import re
from collections.abc import Callable


class UserError(ValueError):
    """Says which file or parameter is wrong, what was expected, and what to do.

    The scripts print it, with the flag in place of the parameter, and exit with 2.

    Args:
        message: a sentence or two; it begins with the file's name if a file is at fault.
        parameter: the argument at fault, by its Python name; None if there is none.
        value: its value; None or an empty one is left out of the text.
        advice: what else may help; parameters in it are in braces, so that the scripts can replace
            them with flags.

    Example:
        >>> print(UserError("expected at least 32 pixels", parameter="img_size", value=16))
        img_size 16: expected at least 32 pixels
        >>> print(UserError("a.png: not an image", advice="fix it, or pass {skip_invalid}"))
        a.png: not an image; fix it, or pass skip_invalid
    """

    def __init__(
        self,
        message: str,
        parameter: str | None = None,
        value: object = None,
        advice: str | None = None,
    ) -> None:
        super().__init__(message)
        self.parameter = parameter
        self.value = value
        self.advice = advice

    def describe(self, rename: Callable[[str], str] = str) -> str:
        """The whole text; ``rename`` turns a parameter's name into a flag's, for instance."""
        text = self.args[0]
        if self.parameter is not None:
            value = "" if self.value is None or not str(self.value) else f" {self.value}"
            text = f"{rename(self.parameter)}{value}: {text}"
        if self.advice is None:
            return text
        advice = re.sub(r"{(\w+)}", lambda name: rename(name[1]), self.advice)
        return f"{text}; {advice}"

    def __str__(self) -> str:
        return self.describe()
