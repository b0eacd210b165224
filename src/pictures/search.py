"""Images among files, folders and patterns; and what lies there that is none."""

import glob
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES

_HINTS = {  # of kinds that something can be done about; for argument names see UserError
    "folder": "{recursive} searches folders",
    "linked folder": "name it to search it",
    "video": "videos go in a run of their own",
    "file of the output folder": "results of an earlier run are no images",
}


@dataclass
class LeftOut:
    """What lies among the inputs and is not used.

    Args:
        kinds: files and folders by what they are, such as ``folder`` or ``.txt file``.
        errors: of folders that cannot be read.
        notes: what else the user should know.

    Example:
        >>> left_out = LeftOut()
        >>> left_out.add("album/a.txt", ".txt file")
        >>> left_out.add("album/b.txt", ".txt file")
        >>> left_out.describe()
        'left out: 2 .txt files (album/a.txt, …)'
    """

    kinds: dict[str, list[Path]] = field(default_factory=dict)
    errors: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, path: str | Path, kind: str | None = None) -> None:
        """Add a file or folder; ``kind`` where it is not told by what is there."""
        path = Path(path)
        self.kinds.setdefault(kind or describe_kind(path), []).append(path)

    def describe(self, rename: Callable[[str], str] | None = None) -> str:
        """Number, kind and first name in one line; empty if nothing was left out.

        Args:
            rename: turns a parameter's name into a flag's; with it, the line says what to do.
        """
        parts = []
        for kind, paths in self.kinds.items():
            more = ", …" if len(paths) > 1 else ""
            hint = ""
            if rename and kind in _HINTS:
                hint = f"; {_HINTS[kind].format(recursive=rename('recursive'))}"
            parts.append(f"{_count(kind, paths)} ({paths[0]}{more}{hint})")
        return f"left out: {', '.join(parts)}" if parts else ""

    def count(self) -> str:
        """Number and kind alone: ``2 .txt files, 1 folder``."""
        return ", ".join(_count(kind, paths) for kind, paths in self.kinds.items())


def _count(kind: str, paths: list[Path]) -> str:
    head, of, rest = re.split("( of | without |$)", kind, maxsplit=1)
    return f"{len(paths)} {head}{'s' if len(paths) > 1 else ''}{of}{rest}"


def describe_kind(path: Path) -> str:
    """What a path is: ``image``, ``video``, ``folder``, ``.txt file``, ``broken link`` …"""
    hidden = path.name.startswith(".")  # macOS writes ._NAME.jpg
    if not path.is_file():
        if path.is_dir():
            return f"{'hidden ' if hidden else 'linked ' if path.is_symlink() else ''}folder"
        return "special file" if path.exists() else "broken link"
    suffix = path.suffix.lower()
    if hidden:
        return "hidden file"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return f"{suffix} file" if suffix else "file without a suffix"


def is_video(path: Path) -> bool:
    """Whether an input is a video, or a pattern of videos, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()


def search_folder(
    folder: Path, left_out: LeftOut, recursive: bool = False, output: Path | None = None
) -> list[Path]:
    """The images of a folder, sorted.

    Args:
        folder: where to look.
        left_out: what else is there is added to it, and folders that cannot be read.
        recursive: in the folders below too, but for hidden ones, and links, which may lead round in
            a circle.
        output: a resolved folder of results, which are left out.
    """
    try:
        entries = [(path, describe_kind(path)) for path in sorted(folder.iterdir())]
    except OSError as error:
        left_out.errors.append(UserError(f"{folder}: cannot be read ({error.strerror})"))
        return []
    images = [path for path, kind in entries if kind == "image"]
    for path, kind in entries:
        if kind == "folder" and path.resolve() == output:
            left_out.add(path, "output folder")
        elif kind == "folder" and recursive:
            images += search_folder(path, left_out, recursive, output)
        elif kind != "image":
            left_out.add(path, kind)
    return images


def find_images(
    path: Path, left_out: LeftOut, recursive: bool = False, output: Path | None = None
) -> dict[Path, Path]:
    """The images of an input, and the place of each below the output.

    Args:
        path: an image, a folder, or a pattern (``*``, ``?``, ``**``; its suffix in any case).
        left_out, recursive, output: as for :func:`search_folder`.

    Raises:
        UserError: it is missing, or there is no image in it.
    """
    inside = LeftOut()
    if path.is_dir():
        above, images = path, search_folder(path, inside, recursive, output)
    elif path.exists():
        return {path: Path(path.name)}
    else:
        matches = match_pattern(path)
        parts = path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
        # Where the pattern leads through folders, they are kept below its last literal one.
        above, images = Path(*parts), []
        is_inside = output is not None and above.resolve() in output.parents
        for match in matches:
            kind = describe_kind(match)
            place = match.parent.resolve()
            if is_inside and output in (place, *place.parents):
                inside.add(match, "file of the output folder")
            elif kind == "folder" and recursive and "**" not in path.parts:
                images += search_folder(match, inside, recursive, output)
            elif kind == "image":
                images.append(match)
            elif kind != "folder" or "**" not in path.parts:  # which that one goes through
                inside.add(match, kind)
    if not images and not inside.errors:
        but = f", but {inside.count()}" if inside.kinds else ""
        searchable = "folder" in inside.kinds and not recursive
        advice = "{recursive} searches its folders" if searchable else None
        raise UserError(f"{path}: holds no images{but}", advice=advice)
    for kind, paths in inside.kinds.items():
        left_out.kinds.setdefault(kind, []).extend(paths)
    left_out.errors += inside.errors
    return {image: image.relative_to(above) for image in images}


def match_pattern(pattern: Path) -> list[Path]:
    """What a pattern matches, sorted; its suffix in upper and lower case.

    Raises:
        UserError: nothing, or it is none and the name of nothing.
    """
    if pattern.is_symlink():
        raise UserError(f"{pattern}: a link to {pattern.readlink()}, which is not there")
    if not glob.has_magic(str(pattern)):
        raise UserError(f"{pattern}: no such file or folder")
    matches = [Path(match) for match in sorted(glob.glob(_any_case(pattern), recursive=True))]
    if not matches:
        raise UserError(f"{pattern}: matches nothing")
    return matches


def _any_case(pattern: Path) -> str:
    """A pattern whose suffix matches in either case: ``*.jpg`` to ``*.[jJ][pP][gG]``.

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


def named_after_others(images: Iterable[Path]) -> dict[Path, Path]:
    """Images whose names are those of others in their folder with more behind, such as
    ``a_mask.png`` beside ``a.jpg``; the other one of each.
    """
    by_stem = {(path.parent, path.stem): path for path in images}
    found = {}
    for (folder, stem), path in by_stem.items():
        ends = [match.start() for match in re.finditer(r"[-_. ]", stem)]
        other = next(
            (by_stem[folder, stem[:n]] for n in ends if (folder, stem[:n]) in by_stem), None
        )
        if other:
            found[path] = other
    return found
