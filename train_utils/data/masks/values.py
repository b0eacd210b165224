"""What a mask file holds: grey levels, an alpha channel, a palette, or small numbers."""

from pathlib import Path

import numpy as np
from PIL import Image

from src.errors import UserError

GREY_TOLERANCE = 32  # by how many levels grey channels may differ: JPEG shifts them a little
PALETTE_TOLERANCE = 8  # the same for a palette's colours, which no JPEG has shifted
MAX_CLASS_INDEX = 30  # numbers up to this and only 255 besides look like class indices


def grey_values(
    image: Image.Image, path: str | Path, by_alpha: bool = False
) -> tuple[np.ndarray, bool]:
    """A mask's values by the rules of :func:`~train_utils.data.masks.read_mask`, before any
    threshold, and whether they may be class indices.

    Args:
        image: the mask.
        path: its file, for messages.
        by_alpha: the masks of its set are cut-outs: if it has an alpha channel, that counts, even
            if it is opaque everywhere.

    Raises:
        UserError: a colour image, or values that are not finite.
    """
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if by_alpha or alpha.min() <= 127:
            return alpha, False
    if image.mode == "LA":
        return np.asarray(image.getchannel("L")), False
    if len(image.getbands()) == 1 and image.mode != "P":
        values = np.asarray(image)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"{path}: holds values that are not finite; a mask must be 0 and 1")
        # JPEG puts small numbers next to every edge.
        return values, image.format not in ("JPEG", "MPO")
    brightest, difference = channel_range(image)
    if image.mode in ("P", "PA") and difference > PALETTE_TOLERANCE:
        return brightest > 0, False
    if difference > GREY_TOLERANCE:
        raise UserError(f"{path}: a colour image, not a mask; expected grey, 0 and 255")
    return brightest, False


def white_of(values: np.ndarray, ones: bool = True, deep: bool = False) -> float:
    """The value that is white: 1, 255 or 65535; 1 for integers only if ``ones`` allows it, and
    65535 for all integers of more than 8 bits if they are ``deep``.
    """
    if deep and values.dtype.kind in "iu" and values.dtype.itemsize > 1:
        return 65535
    highest = float(values.max(initial=0))
    if values.dtype == bool or (highest <= 1 and (ones or values.dtype.kind == "f")):
        return 1
    return 255 if highest <= 255 else 65535


def look_like_indices(values: np.ndarray) -> bool:
    """Whether there are small numbers and 255, and nothing between them."""
    if values.dtype != np.uint8 or not ((values - 1) < MAX_CLASS_INDEX).any():
        return False
    middle = (values > MAX_CLASS_INDEX) & (values < 255)
    return bool(values.max() == 255 and not middle.any())


def is_colour(image: Image.Image) -> bool:
    """Whether the image has colours, rather than only grey levels."""
    several = len(image.getbands()) >= 3 or image.mode in ("P", "PA")
    return several and channel_range(image)[1] > GREY_TOLERANCE


def channel_range(image: Image.Image) -> tuple[np.ndarray, int]:
    """The brightest channel of each pixel, and the largest difference between channels."""
    colours = np.asarray(image.convert("RGB"))
    brightest = colours.max(-1)
    return brightest, int((brightest - colours.min(-1)).max(initial=0))
