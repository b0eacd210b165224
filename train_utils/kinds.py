"""How settings are declared: kinds of values, what is known of each setting, and files of them."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from src.errors import UserError


@dataclass(frozen=True)
class Kind:
    """What one value of a setting may be.

    Args:
        type: bool, int, float, str or Path.
        least, below: the range of a number; ``below`` is excluded.
        words: the only values of a str; of a number, what may stand in its place.
    """

    type: type
    least: float = -math.inf
    below: float = math.inf
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.type is str and self.words:
            return f"one of {', '.join(self.words)}"
        if self.type is int:
            return f"an integer from {self.least:g} to {self.below - 1:.0f}"
        if self.type is float:
            limit = "finite" if math.isinf(self.below) else f"< {self.below:g}"
            return f"a number ≥ {self.least:g} and {limit}"
        return {bool: "true or false", Path: "a path"}.get(self.type, "text")

    def check(self, value: object) -> Any:
        """``value``, as this kind's type.

        Raises:
            ValueError: it is of another type, or out of range.
        """
        if value in self.words:
            return value
        allowed = {float: int | float, Path: str | Path}.get(self.type, self.type)
        if isinstance(value, bool) == (self.type is bool) and isinstance(value, allowed):
            converted = self.type(value)
            number = self.type in (int, float)
            if self.least <= converted < self.below if number else not self.words:
                return converted
        raise ValueError(f"{value!r} is not {self}")

    def parse(self, text: str) -> Any:
        """The value that the text of a flag means.

        Raises:
            ValueError: it means none of this kind.
        """
        value: object = text
        if self.type is int and text.isascii() and text.isdigit():
            value = int(text)
        if self.type is float and text not in self.words:
            try:
                value = float(text)
            except ValueError:
                value = text
        try:
            return self.check(value)
        except ValueError:
            raise ValueError(f"{text!r} is not {self}") from None


SWITCH, TEXT, PATH = Kind(bool), Kind(str), Kind(Path)
POSITIVE, NATURAL = Kind(int, 1, 2**31), Kind(int, 0, 2**31)
NOT_NEGATIVE, FRACTION = Kind(float, 0), Kind(float, 0, 1)


@dataclass(frozen=True)
class Declaration:
    """What is known of a setting beside its name and default.

    Args:
        group: under which heading its flag is listed, and its table in a recipe file.
        kind: of each value.
        help: of its flag.
        several: it holds a tuple of values, one or more.
        metavar: what stands for a value in the help, where that is not N, X or DIR.
        alone: its value where the flag stands without one.
        excludes: the setting that cannot be given with it.
        may_change: a resumed run may have another value.
        compared_as: what a resumed run is compared by instead, which follows from this setting.
    """

    group: str
    kind: Kind
    help: str
    several: bool = False
    metavar: str | None = None
    alone: float | None = None
    excludes: str | None = None
    may_change: bool = False
    compared_as: str | None = None

    @property
    def placeholder(self) -> str | None:
        """What stands for a value in the help."""
        return self.metavar or {int: "N", float: "X", Path: "DIR"}.get(self.kind.type)

    def check(self, value: object) -> Any:
        """``value``, as the setting holds it. Raises ValueError where it is none."""
        if not self.several:
            return self.kind.check(value)
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise ValueError("expected one value or more")
        return tuple(self.kind.check(one) for one in values)


def setting(group: str, default: Any, kind: Kind, help: str, **more: Any) -> Any:
    """The field of a dataclass with a :class:`Declaration`; see there for the arguments.

    Args:
        default: the value, or a function without arguments that gives it.
    """
    metadata = {"declaration": Declaration(group, kind, help, **more)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def declarations(cls: type) -> Mapping[str, Declaration]:
    """The declared settings of a dataclass by name, in order."""
    return {f.name: f.metadata["declaration"] for f in fields(cls)}


def read_recipe(path: Path, known: Mapping[str, Declaration]) -> dict[str, Any]:
    """The settings in a recipe file: TOML, with a table for each group.

    Args:
        path: of the file.
        known: the settings that it may hold, by name.

    Raises:
        UserError: it cannot be read, or holds an unknown name or a value of the wrong kind.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML ({error})") from None
    values = {}
    for group, table in tables.items():
        names = [name for name, declared in known.items() if declared.group == group]
        if not names or not isinstance(table, dict):
            groups = ", ".join(f"[{g}]" for g in dict.fromkeys(d.group for d in known.values()))
            raise UserError(f"{path}: {group}: settings stand in the tables {groups}")
        for name, value in table.items():
            if name not in names:
                raise UserError(f"{path}: [{group}] {name}: {_misplaced(name, names, known)}")
            try:
                values[name] = known[name].check(value)
            except ValueError as error:
                raise UserError(f"{path}: [{group}] {name}: {error}") from None
    return values


def _misplaced(name: str, names: list[str], known: Mapping[str, Declaration]) -> str:
    if name in known:
        return f"belongs in [{known[name].group}]"
    near = get_close_matches(name, names, 1)
    return "no such setting" + (f"; did you mean {near[0]}?" if near else "")
