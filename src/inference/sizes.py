"""A network's input size: a square, another rectangle, or one that fits the image."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError
from ..networks.base import MIN_SIZE
from ..networks.config import MAX_SIZE

STEP = 32  # pixels; networks halve five times, and multiples of this need no padding
Size = int | tuple[int, int] | Literal["auto"] | str
"""A side in pixels, width and height, or ``auto``; as text also ``480x320``."""


@dataclass(frozen=True)
class InputSize:
    """The size to which images are resized for a network.

    Args:
        width, height: in pixels.
        auto: keep each image's aspect ratio instead of this one, at about the same area.

    Example:
        >>> InputSize(320, 320, auto=True).fit(height=720, width=1280)
        (224, 416)
    """

    width: int
    height: int
    auto: bool = False

    def fit(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image of this height and width is resized.

        With ``auto`` both are multiples of 32, and the area is about that of the square, so that
        neither time nor memory depends on the image: for a panorama, the shorter side is 32 and the
        longer one is shorter than in proportion.
        """
        if not self.auto:
            return self.height, self.width
        side = math.sqrt(self.width * self.height) / STEP
        longest = max(1, int(side * side))  # if the shorter side is one step
        stretch = math.sqrt(width / height)
        cells = (side / stretch, side * stretch)
        down, across = (STEP * min(longest, max(1, round(n))) for n in cells)
        return down, across

    @property
    def value(self) -> int | str:
        """As in parameters and JSON: ``320``, ``"480x320"`` or ``"auto"``."""
        if self.auto:
            return "auto"
        return self.width if self.width == self.height else f"{self.width}x{self.height}"

    def __str__(self) -> str:
        if self.auto:
            return f"the area of {self.width}², aspect kept"
        return f"{self.width}²" if self.width == self.height else f"{self.width}×{self.height}"


def parse_size(size: object, trained_at: int) -> InputSize:
    """Parse the size that a parameter gives.

    Args:
        size: a side in pixels; (width, height), or a text as ``"480x320"``; ``"auto"`` for each
            image's own aspect ratio; None for the square that the network was trained at.
        trained_at: the side of that square, whose area ``auto`` has.

    Raises:
        UserError: it is none of these, or a side is below 32 or above 8192 pixels.

    Example:
        >>> parse_size("480x320", 320)
        InputSize(width=480, height=320, auto=False)
    """
    shown = f"{size[0]}x{size[1]}" if isinstance(size, tuple) and len(size) == 2 else size
    if isinstance(size, str):
        size = size.strip().lower()
        pixels = re.fullmatch(r"(\d{1,9})(?:\s*[x×]\s*(\d{1,9}))?", size, re.ASCII)
        size = (int(pixels[1]), int(pixels[2] or pixels[1])) if pixels else size
    if size is None or size == "auto":
        sides: tuple[Any, ...] = (trained_at, trained_at)
    else:
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or any(type(side) is not int for side in sides):
        reason = "give a side in pixels, WxH (width first) or auto"
        raise UserError(reason, "img_size", shown)
    width, height = sides
    if min(width, height) < MIN_SIZE or max(width, height) > MAX_SIZE:
        raise UserError(f"expected from {MIN_SIZE} to {MAX_SIZE} pixels", "img_size", shown)
    return InputSize(width, height, size == "auto")
