"""Names and colours of classes, and the value that each has in a mask."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.errors import UserError
from src.words import counted

Colour = tuple[int, int, int]
TABLES = ("classes.txt", "labelmap.txt", "class_dict.csv")  # ours, CVAT's, CamVid's
_BACKGROUND, _IGNORED = ("background", "bg"), ("ignore", "ignored", "void")
_NUMBERS = r"(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})"
_LINES = [
    re.compile(rf"(?P<name>[^:]+?)\s*:\s*{_NUMBERS}\s*(:.*)?"),  # CVAT: name:r,g,b:parts:actions
    re.compile(rf"(?P<name>.+?)[\s,;]+{_NUMBERS}"),
    re.compile(rf"{_NUMBERS}[\s,;]+(?P<name>.+?)"),
]


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in order.

    Args:
        names: of all of them.
        colours: by name, of those that have one in masks.
        path: of the file that names them; None if a flag does.
    """

    names: tuple[str, ...]
    colours: tuple[tuple[str, Colour], ...] = ()
    path: Path | None = None


def read_table(path: str | Path) -> ClassTable:
    """Read names of classes, one per line, with or without a colour: ``name r g b``.

    Numbers may also precede the name, or be separated by commas. Also reads CSV with a header, and
    CVAT's ``labelmap.txt`` (``name:r,g,b:parts:actions``). Lines that begin with # are skipped.

    Args:
        path: a text file in UTF-8.

    Raises:
        UserError: it cannot be read, a name or a colour occurs twice, or a level is above 255.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    names: list[str] = []
    colours: list[tuple[str, Colour]] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if (
            not line
            or line.startswith("#")
            or re.fullmatch(r"(?i)name\s*,\s*r\s*,\s*g\s*,\s*b", line)
        ):
            continue
        found = next(filter(None, (form.fullmatch(line) for form in _LINES)), None)
        name = found["name"] if found else re.sub(r":[\s:]*$", "", line)
        if name in names:
            raise UserError(f"{path}: line {number}: the name {name} occurs twice")
        names.append(name)
        if found:
            red, green, blue = (int(n) for n in found.groups() if n and n.isdecimal())
            if max(red, green, blue) > 255:
                raise UserError(f"{path}: line {number}: {line}: colour levels go up to 255")
            if (red, green, blue) in dict(colours).values():
                text = f"the colour {red} {green} {blue} occurs twice"
                raise UserError(f"{path}: line {number}: {text}")
            colours.append((name, (red, green, blue)))
    return ClassTable(tuple(names), tuple(colours), path)


def find_table(*folders: Path) -> ClassTable | None:
    """The table of a data set, by a usual name in the first of its folders that has one."""
    paths = (folder / name for folder in folders for name in TABLES)
    found = next(filter(Path.is_file, paths), None)
    return read_table(found) if found else None


def _is(name: str, words: Sequence[str]) -> bool:
    return name.lower().strip("_ ") in words


@dataclass(frozen=True)
class Labels:
    """The values that the labels of objects have in a mask.

    Args:
        values: by name; None if all labels are the object.
        background: value of pixels without a label.
        object: value of all labels, if ``values`` is None.
        ignored: value of labels called ``ignore`` or ``void``, if there is one for them.
    """

    values: Mapping[str, int] | None = None
    background: int = 0
    object: int = 1
    ignored: int | None = None

    def value(self, label: str) -> int | None:
        """The value of a label; None if it is unknown."""
        if self.values is not None and label in self.values:
            return self.values[label]
        if _is(label, _BACKGROUND):
            return self.background
        if self.ignored is not None and _is(label, _IGNORED):
            return self.ignored
        return self.object if self.values is None else None

    def by_value(self, classes: int | None) -> tuple[str, ...]:
        """The names of all classes, by their values; () for object and background."""
        if self.values is None or classes is None:
            return ()
        names = {value: name for name, value in self.values.items()}
        names.setdefault(self.background, "background")
        return tuple(names.get(i, str(i)) for i in range(classes))


def without_ignored(names: Sequence[str]) -> list[str]:
    """Names except those of pixels to ignore: ``ignore``, ``void``."""
    return [name for name in names if not _is(name, _IGNORED)]


def count_classes(names: Sequence[str], ignore_index: int | None = None) -> int:
    """How many classes these names make, including the background.

    Example:
        >>> count_classes(["cat", "dog"]), count_classes(["background", "cat", "dog"])
        (3, 3)
    """
    kept = names if ignore_index is None else without_ignored(names)
    return len(kept) + (not any(_is(name, _BACKGROUND) for name in kept))


def number_classes(
    names: Sequence[str], classes: int, ignore_index: int | None = None, source: object = "classes"
) -> Labels:
    """The index of each class, by its place among the names.

    If ``background`` is not among the names, it is 0 and the others follow from 1; but if there are
    as many names as classes, the first one is 0, and pixels outside all objects are ignored.

    Args:
        names: in order. With ``ignore_index``, ``void`` and ``ignore`` have that value.
        classes: how many there are, with the background.
        ignore_index: of pixels to ignore.
        source: where the names are from, for messages.

    Raises:
        UserError: a name occurs twice, their number does not fit, or there is no value left for the
            background.

    Example:
        >>> number_classes(["cat", "dog"], 3).values
        {'cat': 1, 'dog': 2}
    """
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise _misfit(f"the name {twice[0]} occurs twice", source, "each class needs its own")
    kept = [*names] if ignore_index is None else without_ignored(names)
    ignored = [name for name in names if name not in kept]
    has_background = any(_is(name, _BACKGROUND) for name in kept)
    first = 0 if has_background or len(kept) >= classes else 1
    if len(kept) + first < classes or (has_background and len(kept) > classes):
        count = counted(len(names), "name")
        advice = f"pass {{num_classes}} {count_classes(names, ignore_index)}"
        text = f"{count} for {classes} classes (the background is one of these)"
        raise _misfit(text, source, advice)
    values = {name: i for i, name in enumerate(kept, first) if i < classes or i == ignore_index}
    if ignore_index is not None and ignored:
        if taken := [name for name, value in values.items() if value == ignore_index]:
            advice = "pass {ignore_index} 255, or another number that no class has"
            text = f"{ignore_index} is the number of {taken[0]}, so {ignored[0]} cannot have it"
            raise _misfit(text, source, advice)
        values |= dict.fromkeys(ignored, ignore_index)
    if first:
        return Labels(values, ignored=ignore_index)
    background = next((values[name] for name in values if _is(name, _BACKGROUND)), ignore_index)
    if background is None:
        advice = "name background as the first one, or pass {ignore_index}"
        text = f"none of the {classes} classes is for pixels outside all objects"
        raise _misfit(text, source, advice)
    return Labels(values, background, ignored=ignore_index)


def _misfit(text: str, source: object, advice: str) -> UserError:
    if source == "classes":  # the user's own
        return UserError(text, "classes", advice=advice)
    return UserError(f"{source}: {text}", advice=advice)
