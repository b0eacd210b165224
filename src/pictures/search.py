"""Finds images among files, folders and patterns, and tells what else is there."""

import errno
import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from ..errors import UserError
from ..files import real_path
from ..words import counted
from .formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_HINTS = {  # for kinds that the user can do something about; for argument names see UserError
    "folder": "{recursive} searches folders",
    "linked folder": "name it to search it",
    "video": "videos need a separate run",
    "file of the output folder": "results of an earlier run are not used as images",
}


class Kind(NamedTuple):
    """The number of files of a kind that are left out, and the first of them."""

    number: int
    first: Path


@dataclass
class LeftOut:
    """Files and folders among the inputs that are not used.

    Args:
        kinds: files and folders by kind, such as ``folder`` or ``.txt file``.
        errors: about folders that cannot be read.
        notes: anything else that the user should know.

    Example:
        >>> left_out = LeftOut()
        >>> left_out.add("album/a.txt", ".txt file")
        >>> left_out.add("album/b.txt", ".txt file")
        >>> left_out.describe()
        'left out: 2 .txt files (album/a.txt, …)'
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    errors: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, path: str | Path, kind: str | None = None, count: int = 1) -> None:
        """Add a file or folder, or ``count`` of them, of which it is the first.

        Args:
            path: the file or folder.
            kind: what it is; None to look at the path.
            count: how many there are of this kind.
        """
        path = Path(path)
        kind = kind or describe_kind(path)
        before, first = self.kinds.get(kind, (0, path))
        self.kinds[kind] = Kind(before + count, first)

    def describe(self, rename: Callable[[str], str] | None = None) -> str:
        """Number, kind and first name in one line; empty if nothing was left out.

        Args:
            rename: turns a parameter's name into a flag's; if given, the line says what to do.
        """
        parts = []
        for kind, (count, first) in self.kinds.items():
            more = ", …" if count > 1 else ""
            hint = ""
            if rename and kind in _HINTS:
                hint = f"; {_HINTS[kind].format(recursive=rename('recursive'))}"
            parts.append(f"{_count(kind, count)} ({first}{more}{hint})")
        return f"left out: {', '.join(parts)}" if parts else ""

    def count(self) -> str:
        """Number and kind only: ``2 .txt files, 1 folder``."""
        return ", ".join(_count(kind, count) for kind, (count, _) in self.kinds.items())


def _count(kind: str, count: int) -> str:
    head, of, rest = re.split("( of | without |$)", kind, maxsplit=1)
    return f"{counted(count, head)}{of}{rest}"


def describe_kind(path: "Path | os.DirEntry[str]") -> str:
    """The kind of a path: ``image``, ``video``, ``folder``, ``.txt file``, ``broken link`` …"""
    hidden = path.name.startswith(".")  # macOS writes ._NAME.jpg
    linked = path.is_symlink()
    # A DirEntry knows what it is, unless it is a link; asking the disk takes longer.
    is_file, is_folder = (
        (os.path.isfile(path), os.path.isdir(path))
        if linked or isinstance(path, Path)
        else (path.is_file(), path.is_dir())
    )
    if not is_file:
        if is_folder:
            return f"{'hidden ' if hidden else 'linked ' if linked else ''}folder"
        return "special file" if os.path.exists(path) else "broken link"
    if hidden:
        return "hidden file"
    suffix = path.name[len(stem_of(path.name)) :].lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return f"{suffix} file" if suffix else "file without a suffix"


def is_video(path: Path) -> bool:
    """Whether an input is a video, or a pattern of videos, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()


def walk_folder(
    folder: Path, left_out: LeftOut, recursive: bool = False, output: Path | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Folders that hold images, each with its images' names, sorted.

    Args:
        folder: where to look.
        left_out: gets other files found there, and folders that cannot be read.
        recursive: search subfolders too, except hidden ones and links, which may form a loop.
        output: a resolved folder of results, which are left out.
    """
    images, others = [], dict[str, tuple[int, str]]()  # number of each kind, and the first
    folders = []
    try:
        if not os.access(folder, os.X_OK):  # nothing in it could be opened
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        with os.scandir(folder) as entries:
            for entry in entries:
                kind = describe_kind(entry)
                if kind == "image":
                    images.append(entry.name)
                elif kind == "folder":
                    folders.append(entry.name)
                else:
                    count, first = others.get(kind, (0, entry.name))
                    others[kind] = count + 1, min(first, entry.name)
    except OSError as error:
        left_out.errors.append(UserError(f"{folder}: cannot be read ({error.strerror})"))
        return
    if images:
        images.sort()
        yield folder, images
    below = [(name, "folder", 1) for name in folders]
    for name, kind, count in sorted([*below, *((first, k, n) for k, (n, first) in others.items())]):
        path = folder / name
        if kind == "folder" and real_path(path) == output:
            left_out.add(path, "output folder")
        elif kind == "folder" and recursive:
            yield from walk_folder(path, left_out, recursive, output)
        else:
            left_out.add(path, kind, count)


class Found(NamedTuple):
    """Images of one folder."""

    folder: Path
    place: Path  # of the folder below the output
    names: list[str]
    whole: bool  # whether these are all images of the folder


def find_images(
    path: Path, left_out: LeftOut, recursive: bool = False, output: Path | None = None
) -> Iterator[Found]:
    """The images of an input by folder, and the place of each folder below the output.

    Args:
        path: an image, a folder, or a pattern (``*``, ``?``, ``**``; its suffix in any case).
        left_out, recursive, output: as for :func:`walk_folder`.

    Raises:
        UserError: it is missing or holds no image.
    """
    if not path.is_dir() and path.exists():
        yield Found(path.parent, Path(), [path.name], False)
        return
    inside, empty = LeftOut(), True
    if path.is_dir():
        above = path
        found: Iterator[tuple[Path, list[str], bool]] = (
            (*part, True) for part in walk_folder(path, inside, recursive, output)
        )
    else:
        # The folders that a pattern matches are kept below its last literal part.
        matches = match_pattern(path)
        parts = path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
        above = Path(*parts)
        found = _sort_matches(path, above, matches, inside, recursive, output)
    for folder, names, whole in found:
        empty = False
        yield Found(folder, folder.relative_to(above), names, whole)
    if empty and not inside.errors:
        but = f", but {inside.count()}" if inside.kinds else ""
        searchable = "folder" in inside.kinds and not recursive
        advice = "{recursive} searches its folders" if searchable else None
        raise UserError(f"{path}: holds no images{but}", advice=advice)
    for kind, (count, first) in inside.kinds.items():
        left_out.add(first, kind, count)
    left_out.errors += inside.errors


def _sort_matches(
    pattern: Path,
    above: Path,
    matches: list[str],
    left_out: LeftOut,
    recursive: bool,
    output: Path | None,
) -> Iterator[tuple[Path, list[str], bool]]:
    """The matches of a pattern, as from :func:`walk_folder`, and whether they are a whole
    folder."""
    is_inside = output is not None and real_path(above) in output.parents
    through = "**" in pattern.parts  # it searches folders by itself
    for parent, group in groupby(matches, os.path.dirname):
        folder = Path(parent)
        resolved = real_path(folder)
        if is_inside and output in (resolved, *resolved.parents):
            for match in group:
                left_out.add(match, "file of the output folder")
            continue
        names: list[str] = []
        for path in map(Path, group):
            kind = describe_kind(path)
            if kind == "image":
                names.append(path.name)
            elif kind == "folder" and recursive and not through:
                if names:
                    yield folder, names, False
                names = []
                for inside, found in walk_folder(path, left_out, recursive, output):
                    yield inside, found, True
            elif kind != "folder" or not through:
                left_out.add(path, kind)
        if names:
            yield folder, names, False


def is_missing(path: Path) -> bool:
    """Whether nothing exists at a path, and it is neither a pattern nor a link."""
    return not (path.exists() or path.is_symlink() or glob.has_magic(str(path)))


def match_pattern(pattern: Path) -> list[str]:
    """The matches of a pattern, sorted; its suffix in upper and lower case.

    Raises:
        UserError: nothing matches, or it is not a pattern and does not exist.
    """
    if pattern.is_symlink():
        raise UserError(f"{pattern}: a link to {pattern.readlink()}, which does not exist")
    if is_missing(pattern):
        raise UserError(f"{pattern}: no such file or folder")
    matches = sorted(glob.glob(_any_case(pattern), recursive=True))
    if not matches:
        raise UserError(f"{pattern}: matches nothing")
    return matches


def _any_case(pattern: Path) -> str:
    """Make a pattern's suffix match in either case: ``*.jpg`` to ``*.[jJ][pP][gG]``.

    Example:
        >>> _any_case(Path("album/?.[jp]*g"))
        'album/?.[jpJP]*[gG]'
    """
    stem, dot, suffix = pattern.name.rpartition(".")

    def both(match: re.Match[str]) -> str:
        inside = match[1] or match[2]
        return f"[{'!' if match[0][1:2] == '!' else ''}{inside}{inside.swapcase()}]"

    suffix = re.sub(r"\[!?([^]]+)]|([a-zA-Z])", both, suffix) if dot else suffix
    return str(pattern.with_name(f"{stem}{dot}{suffix}"))


def named_after_others(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Images of a folder whose names begin with another image's name, and that other image.

    Example:
        >>> list(named_after_others(["a.jpg", "a_mask.png", "b.jpg"]))
        [('a_mask.png', 'a.jpg')]
    """
    by_stem = {stem_of(name): name for name in names}
    for stem, name in by_stem.items():
        ends = (match.start() for match in re.finditer(r"[-_. ]", stem))
        other = next((by_stem[stem[:n]] for n in ends if stem[:n] in by_stem), None)
        if other:
            yield name, other


def stem_of(name: str) -> str:
    """A file's name without its suffix; faster than ``Path(name).stem``."""
    stem, _, suffix = name.rpartition(".")
    return stem if stem and suffix else name
