"""YOLO segmentation: a text file for each image, a polygon a line in shares of its size."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError

from ..masks import read_table
from .draw import Figure, ShapeError
from .record import Parsed, Record, numbers, polygon

_NAMES = ("classes.txt", "obj.names", "_classes.txt", "labels.txt")
_OTHER = (*_NAMES, "train.txt", "val.txt", "test.txt")


def is_label_file(path: Path) -> bool:
    """Whether a text file may hold the polygons of an image, by its name and its first line."""
    if path.name.lower() in _OTHER:
        return False
    try:
        with path.open(encoding="utf-8") as file:
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
    """The names of the classes, by number: of a ``data.yaml`` or a list beside the images.

    Raises:
        UserError: the yaml cannot be read.
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
        raise UserError(f"{path}: not a readable YAML ({first})") from None
    names = data.get("names") if isinstance(data, dict) else None
    if isinstance(names, Mapping) and names and all(isinstance(key, int) for key in names):
        return [str(names.get(i, i)) for i in range(max(names) + 1)]
    return list(map(str, names)) if isinstance(names, list) and names else None


def read_yolo(files: Sequence[Path], names: Sequence[str] | None, parsed: Parsed) -> None:
    """Add the images of label files.

    Lines of five numbers are boxes in a set that has nothing else, and faults where others are
    polygons.

    Args:
        files: of the labels, one for each image.
        names: of the classes; None where only their numbers are known.
        parsed: what they are added to.
    """
    rows = {file: _read_rows(file) for file in files}
    of_boxes = all(len(row) == 5 for lines in rows.values() for row in lines)
    highest = -1
    for file, lines in rows.items():
        record = Record(file, f"{file.stem}.*")
        parsed.records.append(record)
        for number, row in enumerate(lines, 1):
            try:
                record.shapes.append(_read_line(row, names, of_boxes))
                highest = max(highest, int(float(row[0])))
                parsed.boxes += of_boxes
            except ShapeError as error:
                record.faults.append(f"line {number}: {error}")
    listed = names or [str(i) for i in range(highest + 1)]
    parsed.names |= dict.fromkeys(listed)


def _read_rows(file: Path) -> list[list[str]]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [line.split() for line in text.splitlines() if line.strip()]


def _read_line(row: list[str], names: Sequence[str] | None, of_boxes: bool) -> Figure:
    values = numbers(row)
    number, places = values[0], values[1:]
    if number < 0 or number != int(number):
        raise ShapeError(f"the class {row[0]}, expected a number from 0")
    if names is not None and number >= len(names):
        raise ShapeError(f"the class {int(number)}, which is unknown: there are {len(names)} names")
    label = names[int(number)] if names is not None else str(int(number))
    if of_boxes:
        centre, size = places[:2], places[2:]
        kind, points = "rectangle", np.array([centre - size / 2, centre + size / 2])
    else:
        kind, points = "polygon", polygon(places).reshape(-1, 2)
    if (points < -0.01).any() or (points > 1.01).any():
        raise ShapeError("coordinates that are no shares of the image's size, 0 to 1")
    return Figure(label, kind, points, relative=True)
