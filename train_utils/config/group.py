"""What the groups of settings share."""

from typing import Any

from src import UserError
from src.words import counted


class Group:
    """Settings of one topic; :class:`~train_utils.config.Settings` puts the groups together."""

    def _complete(self) -> None:
        """Fill in the defaults that follow from other settings of the group."""

    def _check(self) -> None:
        """Refuse settings of the group that contradict each other."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def check_count(name: str, values: tuple[Any, ...], count: int, what: str) -> None:
    """Refuse a setting of several values that does not have ``count`` of them."""
    if len(values) != count:
        raise UserError(f"expected {counted(count, 'value')}, got {len(values)}", name, advice=what)
