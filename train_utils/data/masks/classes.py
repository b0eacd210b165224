"""Masks of class indices, and those that show classes in colours."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from src.errors import UserError
from src.pictures.images import open_image

from .names import Colour


def read_classes(
    path: str | Path, classes: int, ignore_index: int | None = None, is_map: bool = False
) -> np.ndarray:
    """Read a mask of class indices H×W uint8: palette indices or grey values, unchanged.

    Args:
        path: the mask file, 8-bit grey or palette.
        classes: how many there are; indices are below it.
        ignore_index: a value that pixels may have besides the classes'.
        is_map: it is a network's map, for the error's advice.

    Raises:
        UserError: the file cannot be read, is neither grey nor palette, or holds another index.
    """
    return to_classes(open_image(path), path, classes, ignore_index, is_map)


def to_classes(
    image: Image.Image,
    path: str | Path,
    classes: int,
    ignore_index: int | None,
    is_map: bool = False,
) -> np.ndarray:
    """Like :func:`read_classes`, for an open image."""
    if image.mode not in ("L", "P", "1"):
        advice = None
        if image.mode in ("RGB", "RGBA"):
            advice = (
                "for classes in colours pass {class_colours} FILE (name r g b, one per line), "
                "{class_colours} voc or {class_colours} cityscapes"
            )
        text = f"{path}: is {image.mode}; a mask of classes must be 8-bit grey or palette"
        raise UserError(text, advice=advice)
    indices = np.array(image, dtype=np.uint8)
    present = np.unique(indices).tolist()
    wrong = [i for i in present if i >= classes and i != ignore_index]
    if wrong and set(present) <= {0, 255}:
        raise UserError(
            f"{path}: contains only 0 and 255 (a mask of object and background), expected indices "
            f"below {classes}",
            advice="leave {num_classes} out",
        )
    if wrong:
        advice = f"if it marks pixels to ignore, pass {{ignore_index}} {wrong[-1]}"
        if is_map:
            advice = "if the network has more classes, raise {num_classes}"
        elif ignore_index is not None:
            advice = f"pixels to ignore hold {{ignore_index}} {ignore_index} and no other value"
        raise UserError(
            f"{path}: holds index {str(wrong[:6])[1:-1]}; with {classes} classes they are below "
            f"{classes}",
            advice=advice,
        )
    return indices


def has_only(image: Image.Image, colours: Mapping[Colour, int]) -> bool:
    """Whether an image has no other colours than these."""
    found = image.convert("RGB").getcolors(len(colours))  # None if there are more
    return found is not None and {colour for _, colour in found} <= colours.keys()


def from_colours(
    image: Image.Image,
    path: str | Path,
    colours: Mapping[Colour, int],
    ignore_index: int | None = None,
) -> np.ndarray:
    """Read a mask that shows classes in colours.

    Args:
        image: the mask, RGB or palette.
        path: its file, for messages.
        colours: the value of each.
        ignore_index: a palette index that stays as it is, whatever its colour.

    Returns:
        H×W uint8.

    Raises:
        UserError: the mask has a colour that is not among them.
    """
    if image.mode == "P":  # by its few indices, rather than its many pixels
        indices = np.array(image)
        shown = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        shown.putpalette(image.getpalette() or [0, 0, 0])
        listed = [tuple(colour) for colour in np.asarray(shown.convert("RGB"))[0].tolist()]
        present = np.unique(indices).tolist()
        of_index = {i: colours.get(listed[i]) for i in present if i != ignore_index}
        _refuse_unknown([listed[i] for i, value in of_index.items() if value is None], path)
        table = np.arange(256, dtype=np.uint8)
        for index, value in of_index.items():
            table[index] = value or 0
        return table[indices]
    codes = _codes(image)
    known = np.array([_code(colour) for colour in colours], np.uint32)
    order = known.argsort()
    place = np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)
    nearest = order[place]
    wrong = known[nearest] != codes
    if wrong.any():
        others, counts = np.unique(codes[wrong], return_counts=True)
        by_count = others[(-counts.astype(int)).argsort(kind="stable")].tolist()
        _refuse_unknown([(code >> 16, code >> 8 & 255, code & 255) for code in by_count], path)
    return np.array(list(colours.values()), np.uint8)[nearest]


def _refuse_unknown(colours: list[Colour], path: str | Path) -> None:
    if not colours:
        return
    listed = ", ".join(map(str, colours[:6])) + (" …" if len(colours) > 6 else "")
    one = len(colours) == 1
    what = f"the colour {listed}, which is" if one else f"{len(colours)} colours that are"
    text = f"{path}: holds {what} not in the table of classes{'' if one else f': {listed}'}"
    lossy = "; JPEG, resizing or blending produces such colours" if len(colours) > 16 else ""
    raise UserError(text + lossy, advice="add them to {class_colours} or classes.txt (name r g b)")


def _code(colour: Colour) -> int:
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def _codes(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image.convert("RGB")).astype(np.uint32)
    return pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]


def _present(image: Image.Image) -> list[Colour]:
    codes = np.unique(_codes(image)).tolist()
    return [(code >> 16, code >> 8 & 255, code & 255) for code in codes]
