"""Objects and how they are drawn: each the way its own tool draws it."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw

from src.errors import UserError

from ..masks import Labels

Size = tuple[int, int]
"""Width and height in pixels."""


class ShapeError(ValueError):
    """A shape that cannot be drawn; its text says why."""


class Shape(Protocol):
    """An object of one label."""

    @property
    def label(self) -> str: ...

    def paint(self, canvas: Image.Image, value: int) -> None:
        """Set the object's pixels in an image of mode L to a value."""


@dataclass(frozen=True)
class Figure:
    """A polygon, rectangle or ellipse whose outline belongs to it, as LabelMe and YOLO draw it.

    Args:
        label: of the object.
        kind: ``polygon``, or ``rectangle`` or ``ellipse`` by two opposite corners of its box.
        points: n×2, x and y; pixel (0, 0) covers 0 to 1.
        relative: they are fractions of width and height.
    """

    label: str
    kind: str
    points: np.ndarray
    relative: bool = False

    def paint(self, canvas: Image.Image, value: int) -> None:
        """See :class:`Shape`."""
        points = self.points
        if self.relative:
            points = self._in_pixels(canvas.size)
        draw = ImageDraw.Draw(canvas)
        paint = getattr(draw, self.kind)
        paint([(x, y) for x, y in points.tolist()], outline=value, fill=value)

    def _in_pixels(self, size: Size) -> np.ndarray:
        """The pixels that contain the points; fractions of six decimals may be slightly off."""
        places = self.points * size
        first = np.floor(places + 0.01)
        if self.kind == "rectangle":  # its end is the beginning of the next pixel
            first[1] = np.maximum(first[0], np.ceil(places[1] - 0.01) - 1)
        return first.clip(0, np.array(size) - 1)


@dataclass(frozen=True)
class Bitmap:
    """A mask inside a box, as LabelMe embeds it.

    Args:
        label: of the object.
        corner: x and y of its first pixel.
        png: the mask.
    """

    label: str
    corner: tuple[int, int]
    png: bytes

    def paint(self, canvas: Image.Image, value: int) -> None:
        """See :class:`Shape`."""
        with Image.open(io.BytesIO(self.png)) as image:
            inside = Image.fromarray((np.asarray(image.convert("L")) > 0).view(np.uint8) * 255)
        canvas.paste(value, self.corner, inside)


@dataclass(frozen=True)
class Runs:
    """A run-length encoded mask of the whole image, as COCO writes it.

    Args:
        label: of the object.
        lengths: of alternating runs of pixels outside and inside, column by column.
    """

    label: str
    lengths: np.ndarray

    def paint(self, canvas: Image.Image, value: int) -> None:
        """See :class:`Shape`."""
        levels = np.zeros(len(self.lengths), np.uint8)
        levels[1::2] = 255
        width, height = canvas.size
        mask = np.repeat(levels, self.lengths).reshape(width, height).T
        canvas.paste(value, (0, 0), Image.fromarray(np.ascontiguousarray(mask)))


def decode_counts(text: bytes) -> np.ndarray:
    """The lengths of runs in COCO's compressed form.

    Each character, less 48, holds 5 bits of a number, the lowest first; its sixth bit means that
    more follow, and the highest of the last one's 5 bits is the sign. From the fourth on, numbers
    are differences to the number two places before.

    Args:
        text: as pycocotools writes it.

    Returns:
        int64, of pixels outside and inside, alternating.

    Raises:
        ShapeError: the text is not in that form.
    """
    bits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(bits):
        return bits
    last = np.flatnonzero((bits & 32) == 0)  # each number's last character
    if bits.min() < 0 or bits.max() > 63 or not len(last) or last[-1] != len(bits) - 1:
        raise ShapeError("an RLE whose text is truncated or malformed")
    first = np.concatenate(([0], last[:-1] + 1))
    digits = last - first + 1
    if digits.max() > 12:
        raise ShapeError("an RLE whose text is truncated or malformed")
    places = np.arange(len(bits)) - np.repeat(first, digits)
    values = np.add.reduceat((bits & 31) << 5 * places, first)
    values -= np.where(bits[last] & 16, 1 << 5 * digits, 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


@dataclass(frozen=True)
class Polygons:
    """Polygons whose union is one object, as COCO draws them.

    Args:
        label: of the object.
        parts: each x, y, x, y …; pixel (0, 0) covers 0 to 1.
    """

    label: str
    parts: tuple[np.ndarray, ...]

    def paint(self, canvas: Image.Image, value: int) -> None:
        """See :class:`Shape`."""
        coder = load_pycocotools()
        width, height = canvas.size
        polygons = [part.tolist() for part in self.parts]
        counts = coder.merge(coder.frPyObjects(polygons, height, width))["counts"]
        Runs(self.label, decode_counts(counts)).paint(canvas, value)


def load_pycocotools():  # type: ignore[no-untyped-def]
    """The module of pycocotools that draws polygons.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError:
        text = "COCO's polygons need pycocotools: pip install '.[train]'"
        raise UserError(text) from None
    return mask


@dataclass(frozen=True)
class Drawing:
    """A mask reader that draws an image's mask from its annotation whenever it is called.

    Args:
        shapes: in order, each drawn over those before it.
        labels: the values of their labels.
        size: of the mask; that of the upright image if the annotation has none.
        name: of the image, for messages.

    Example:
        >>> box = Figure("cup", "rectangle", np.array([[1, 0], [2, 1]]))
        >>> Drawing((box,), Labels(), (4, 2))(Path("cup.json"))
        array([[0, 1, 1, 0],
               [0, 1, 1, 0]], dtype=uint8)
    """

    shapes: tuple[Shape, ...]
    labels: Labels
    size: Size | None
    name: str = field(default="", compare=False)

    def __call__(self, path: str | Path) -> np.ndarray:
        """The mask, H×W uint8.

        Args:
            path: of the annotation, for messages.

        Raises:
            UserError: an embedded mask cannot be decoded, or a package is missing.
        """
        assert self.size is not None
        canvas = Image.new("L", self.size, self.labels.background)
        try:
            for shape in self.shapes:
                shape.paint(canvas, self.labels.value(shape.label) or 0)
        except UserError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly anything on corrupt data
            raise UserError(f"{path}: {self.name}: cannot be drawn ({error})") from None
        return np.array(canvas)
