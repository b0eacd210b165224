"""What is read from an annotation file, before its images are searched for."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from src.errors import UserError
from src.words import counted

from .draw import Shape, ShapeError, Size

_MAX_SIDE = 100_000  # px; larger sizes are errors


@dataclass
class Record:
    """The annotation of one image.

    Args:
        file: the one that holds it.
        image: the image, as the file names it.
        shapes: its objects.
        size: of the image, according to the file; None if it has none.
        faults: what is wrong with it.
        found: the image file, once it is found.
        embedded: a hint for messages if no file is found but ``file`` holds the image itself.
    """

    file: Path
    image: str
    shapes: list[Shape] = field(default_factory=list)
    size: Size | None = None
    faults: list[str] = field(default_factory=list)
    found: Path | None = None
    embedded: str = ""


@dataclass
class Parsed:
    """The annotations of some files of one kind.

    Args:
        kind: ``COCO``, ``LabelMe`` or ``YOLO``.
        records: of the images.
        faults: of whole files.
        names: of classes, as the files have them.
        left_out: how many shapes without an area there are of each kind, given as a noun and what
            follows it.
        boxes: how many objects are only boxes.
        notes: further notes for the user.
    """

    kind: str
    records: list[Record] = field(default_factory=list)
    faults: list[UserError] = field(default_factory=list)
    names: dict[str, None] = field(default_factory=dict)
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    boxes: int = 0
    notes: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Notes for the user about the shapes."""
        notes = list(self.notes)
        if self.left_out:
            kinds = ((counted(count, *kind[:1]), kind[1]) for kind, count in self.left_out.items())
            listed = ", ".join(map("".join, kinds))
            notes.append(f"left out, as they have no area: {listed}")
        if self.boxes:
            one, more = "object is only a box", "objects are only boxes"
            what = counted(
                self.boxes,
                f"{one}: drawn as a filled rectangle",
                f"{more}: drawn as filled rectangles",
            )
            notes.append(what)
        return notes


def numbers(values: Any, count: int | None = None) -> np.ndarray:
    """Finite numbers as a flat array.

    Raises:
        ShapeError: they are not numbers, or not ``count`` of them.
    """
    try:
        array = np.asarray(values, np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        raise ShapeError("coordinates that are not numbers") from None
    if not np.isfinite(array).all():
        raise ShapeError("coordinates that are not finite")
    if count is not None and len(array) != count:
        raise ShapeError(f"{counted(len(array), 'number')}, expected {count}")
    return array


def polygon(values: Any) -> np.ndarray:
    """The corners of a polygon, flat: x, y, x, y …

    Raises:
        ShapeError: fewer than three, or not pairs of numbers.
    """
    array = numbers(values)
    if len(array) % 2:
        count = counted(len(array), "number")
        raise ShapeError(f"a polygon of {count}, expected pairs of x and y")
    if len(array) < 6:
        raise ShapeError(f"a polygon of {counted(len(array) // 2, 'point')}, expected 3 or more")
    return array


def check_inside(points: np.ndarray, size: Size | None) -> None:
    """Refuse points that must be from another image: far outside, or none inside.

    Raises:
        ShapeError: one is more than the image's longer side away from it, or the bounding box does
            not overlap it, so that nothing would be drawn.
    """
    limit = 2 * max(size) if size else _MAX_SIDE
    if len(points) and (points.max() > limit or points.min() < -limit):
        raise ShapeError("coordinates far outside the image")
    corners = points.reshape(-1, 2)
    if size and len(corners) and ((corners.max(0) < 0) | (corners.min(0) > size)).any():
        raise ShapeError("a shape wholly outside the image")


def read_size(width: Any, height: Any) -> Size | None:
    """The size of an image according to a file; None if it has none.

    Raises:
        ShapeError: it is invalid.
    """
    if width is None and height is None:
        return None
    sides = [side for side in (width, height) if isinstance(side, (int, float))]
    if len(sides) != 2 or any(not (math.isfinite(s) and 1 <= s <= _MAX_SIDE) for s in sides):
        raise ShapeError(f"an invalid image size, {width}×{height}")
    return int(sides[0]), int(sides[1])
