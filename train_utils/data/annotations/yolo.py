"""YOLO segmentation: a text file per image, a polygon per line in fractions of its size."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError

from ..masks import read_table
from .draw import Figure, ShapeError
from .files import ImageFiles
from .record import Parsed, Record, numbers, polygon

_NAMES = ("classes.txt", "obj.names", "_classes.txt", "labels.txt")
_OTHER = (*_NAMES, "train.txt", "val.txt", "test.txt")
_MAX_CLASSES = 10_000


def find_label_files(paths: Sequence[Path], images: ImageFiles, alone: bool) -> list[Path]:
    """The text files that are label files of images, or should be.

    Those whose first line looks like labels. Also others named like an image, so that their faults
    are reported: those in the same folders, and those elsewhere unless another file has labels of
    that image.

    Args:
        paths: the text files.
        images: of the data set.
        alone: there are no other annotations: if no file looks like labels, others may be some.

    Returns:
        The files; none if all are empty.
    """
    texts = [path for path in paths if path.name.lower() not in _OTHER]
    sound = [path for path in texts if _looks_like_labels(path)]
    filled = [path for path in sound if path.stat().st_size]
    if not filled and not alone:
        return []
    folders, stems = {path.parent for path in filled}, {path.stem for path in filled}
    others = [
        path
        for path in texts
        if path not in sound and (path.parent in folders or path.stem not in stems)
    ]
    faulty = [path for path in others if images.has(path.stem)]
    return sorted([*sound, *faulty]) if filled or faulty else []


def _looks_like_labels(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
    except (OSError, UnicodeDecodeError):
        return False
    parts = first.split()
    if not first:
        return True  # an image without objects
    try:
        return len(parts) >= 5 and all(-1 < float(part) < 1e4 for part in parts)
    except ValueError:
        return False


def read_names(root: Path, folders: Sequence[Path]) -> list[str] | None:
    """The names of the classes, by number: from a ``data.yaml`` or a list next to the images.

    Raises:
        UserError: the file cannot be read, or a name occurs twice.
    """
    for folder in (root, *folders):
        for path in sorted(folder.glob("*.y*ml")):
            if names := _yaml_names(path):
                return names
    for folder in (root, *folders):
        for path in (folder / name for name in _NAMES):
            if path.is_file():
                return list(read_table(path).names)
    return None


def _yaml_names(path: Path) -> list[str] | None:
    import yaml  # a dependency of huggingface_hub

    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not readable as YAML ({first})") from None
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, Mapping) and names and all(isinstance(key, int) for key in names):
        names = [names.get(i, i) for i in range(max(names) + 1)]
    if not isinstance(names, list) or not names:
        return None
    listed = list(map(str, names))
    if twice := [name for name, count in Counter(listed).items() if count > 1]:
        raise UserError(f"{path}: the name {twice[0]} occurs twice")
    return listed


def read_yolo(files: Sequence[Path], names: Sequence[str] | None, parsed: Parsed) -> None:
    """Add the images of label files.

    Lines of five numbers are boxes in a set without polygons, and faults if others are polygons.

    Args:
        files: of the labels, one for each image.
        names: of the classes; None if only their numbers are known.
        parsed: what they are added to.
    """
    records = [Record(file, f"{file.stem}.*") for file in files]
    rows = [_read_rows(record) for record in records]
    of_boxes = all(len(row) < 7 for lines in rows for row in lines)
    for record, lines in zip(records, rows, strict=True):
        parsed.records.append(record)
        for number, row in enumerate(lines, 1):
            try:
                if row:
                    record.shapes.append(_read_line(row, names, of_boxes))
                    parsed.boxes += of_boxes
            except ShapeError as error:
                record.faults.append(f"line {number}: {error}")
    if names is None:
        labels = [int(shape.label) for record in records for shape in record.shapes]
        names = [str(i) for i in range(max(labels, default=-1) + 1)]
    parsed.names |= dict.fromkeys(names)


def _read_rows(record: Record) -> list[list[str]]:
    try:
        text = record.file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        record.faults.append(f"cannot be read ({reason})")
        return []
    return [line.split() for line in text.splitlines()]


def _class_number(text: str) -> int:
    try:
        value = float(text)  # as some tools write all numbers
    except ValueError:
        value = -1
    if not (0 <= value < _MAX_CLASSES and value.is_integer()):
        raise ShapeError(f"the class {text}, expected a number from 0")
    return int(value)


def _read_line(row: list[str], names: Sequence[str] | None, of_boxes: bool) -> Figure:
    number, places = _class_number(row[0]), numbers(row[1:], 4 if of_boxes else None)
    if names is not None and number >= len(names):
        raise ShapeError(f"the class {number}, which is unknown: the names end at {len(names) - 1}")
    label = names[number] if names is not None else str(number)
    if of_boxes:
        centre, size = places[:2], places[2:]
        kind, points = "rectangle", np.array([centre - size / 2, centre + size / 2])
    else:
        if len(places) == 4:
            raise ShapeError("a box, where other lines are polygons")
        kind, points = "polygon", polygon(places).reshape(-1, 2)
    if (points < -0.01).any() or (points > 1.01).any():
        raise ShapeError("coordinates outside 0 to 1, expected fractions of the image's size")
    return Figure(label, kind, points, relative=True)
