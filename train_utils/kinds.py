"""How settings are declared: kinds of values, a declaration for each setting, and recipe files."""

import math
import re
import tomllib
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from src.errors import UserError
from src.weights.named import NAMES


@dataclass(frozen=True)
class Kind:
    """What one value of a setting may be. Called with a value or its text, it returns the value.

    Args:
        type: bool, int, float, str or Path.
        metavar: placeholder of a value in the help.
        least, below: the range of a number; ``below`` is excluded.
        words: the only values of a str; for other types, words accepted in place of a value.

    Raises:
        ArgumentTypeError: the value is of another type, or out of range.

    Example:
        >>> POSITIVE("3"), NUMBER(2)
        (3, 2.0)
    """

    type: type
    metavar: str | None = None
    least: float = -math.inf
    below: float = math.inf
    words: tuple[str, ...] = ()

    def __call__(self, value: object) -> Any:
        if value in self.words:
            return value
        number = self.type in (int, float)
        accepted = {int: int | str, float: int | float | str, Path: Path | str}
        is_bool = isinstance(value, bool)  # which is an int too
        if isinstance(value, accepted.get(self.type, self.type)) and is_bool == (self.type is bool):
            with suppress(ValueError):
                converted = self.type(value)
                only_words = self.words and self.type is str
                if self.least <= converted < self.below if number else not only_words:
                    return converted
        raise ArgumentTypeError(f"{value!r} is not {self}")

    def __str__(self) -> str:
        if self.type is int:
            return f"an integer from {self.least:g} to {self.below - 1:.0f}"
        if self.type is float:
            limit = "finite" if math.isinf(self.below) else f"< {self.below:g}"
            return f"a number ≥ {self.least:g} and {limit}"
        one_of = f"one of {', '.join(self.words)}" if self.words else "text"
        return {bool: "true or false", Path: "a path"}.get(self.type, one_of)


SWITCH, TEXT, PATH = Kind(bool), Kind(str, "NAME"), Kind(Path, "DIR")
POSITIVE, NATURAL = Kind(int, "N", 1, 2**31), Kind(int, "N", 0, 2**31)
NUMBER, FRACTION = Kind(float, "X", 0), Kind(float, "X", 0, 1)


@dataclass(frozen=True)
class SizeKind(Kind):
    """An integer, or a range of sizes as text, which stays text: ``192-352``.

    Args:
        step: a range goes from one multiple of it to a larger one, up to ``largest``.
        largest: see ``step``.

    Example:
        >>> SizeKind(int, least=1, below=2**31)("192 - 352")
        '192-352'
    """

    step: int = 32
    largest: int = 8192

    def __call__(self, value: object) -> Any:
        ends = re.fullmatch(r"\s*(\d{1,9})\s*-\s*(\d{1,9})\s*", value if type(value) is str else "")
        if ends is None:
            return super().__call__(value)
        first, last = map(int, ends.groups())
        if not 0 < first < last <= self.largest or first % self.step or last % self.step:
            raise ArgumentTypeError(f"{value!r} is not {self._range()}")
        return f"{first}-{last}"

    def __str__(self) -> str:
        words = "".join(f", or {word}" for word in self.words)
        return f"{super().__str__()}, or {self._range()}{words}"

    def _range(self) -> str:
        example = f"{6 * self.step}-{11 * self.step}"
        return f"a range from one multiple of {self.step} to a larger one such as {example}"

    def spread(self, value: int | str) -> list[int]:
        """The sizes that a value means: itself, or the multiples of ``step`` in the range."""
        if isinstance(value, int):
            return [value]
        first, last = map(int, value.split("-"))
        return list(range(first, last + 1, self.step))


class WeightsKind(Kind):
    """A path, or a name of weights. ``./u2net`` is a path, but ``Path`` would make it a name."""

    def __call__(self, value: object) -> Any:
        path = super().__call__(value)
        meant = isinstance(value, str) and value != str(path)
        return path.absolute() if meant and str(path) in NAMES else path


WEIGHTS = WeightsKind(Path, "W")


def one_of(*words: str) -> Kind:
    """The kind of a setting that is one of these words."""
    return Kind(str, "|".join(words), words=words)


@dataclass(frozen=True)
class Declaration:
    """The declaration of a setting, except its name.

    Args:
        group: the heading of its flag in the help, and its table in a recipe file.
        default: returns it; None or () if it depends on other settings.
        kind: of each value.
        help: of its flag.
        several: it holds a tuple of values, one or more.
        alone: its value if the flag is given without one.
        may_change: a resumed run may have another value.
        fact: the fact about the run that is compared in place of this setting on a resume.
    """

    group: str
    default: Callable[[], Any]
    kind: Kind
    help: str
    several: bool = False
    alone: float | str | None = None
    may_change: bool = False
    fact: str | None = None

    def read(self, value: object) -> Any:
        """``value`` as the setting holds it. Raises ArgumentTypeError if it is invalid."""
        if not self.several:
            return self.kind(value)
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise ArgumentTypeError("expected one value or more")
        return tuple(map(self.kind, values))


def setting(group: str, kind: Kind, help: str, default: Any = None, **more: Any) -> Any:
    """The field of a dataclass with a :class:`Declaration`; see there for the arguments.

    Args:
        default: the value, or a function without arguments that returns it.
    """
    make = default if callable(default) else lambda: default
    declaration = Declaration(group, make, kind, help, **more)
    return field(default_factory=make, metadata={"declaration": declaration})


def read_recipe(path: Path, known: Mapping[str, Declaration]) -> dict[str, Any]:
    """The settings in a recipe file: TOML, with a table for each group.

    Args:
        path: of the file.
        known: the settings that it may hold, by name.

    Raises:
        UserError: it cannot be read, or holds an unknown name or a value of the wrong kind.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:  # invalid TOML, or its encoding
        raise UserError(f"{path}: not TOML ({error})") from None
    groups = list(dict.fromkeys(declared.group for declared in known.values()))
    values = {}
    for group, table in tables.items():
        if group not in groups or not isinstance(table, dict):
            raise UserError(f"{path}: {group}: {_not_a_table(group, table, groups, known)}")
        for name, value in table.items():
            try:
                values[name] = _find(name, group, known).read(value)
            except ArgumentTypeError as error:
                raise UserError(f"{path}: [{group}] {name}: {error}") from None
    return values


def _not_a_table(
    name: str, value: object, groups: list[str], known: Mapping[str, Declaration]
) -> str:
    is_table = isinstance(value, dict | list)
    if name in known and not is_table:
        return f"is outside a table; write it below [{known[name].group}]"
    if name in groups:
        return f"is not a table; write its settings below [{name}]"
    if name in known:
        return f"is a setting, not a table; write {name} = … below [{known[name].group}]"
    return f"unknown table; expected {', '.join(f'[{group}]' for group in groups)}"


def _find(name: str, group: str, known: Mapping[str, Declaration]) -> Declaration:
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ArgumentTypeError(f"no such setting{hint}")
    if known[name].group != group:
        raise ArgumentTypeError(f"belongs in [{known[name].group}]")
    return known[name]
