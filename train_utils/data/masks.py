"""Mask files: which kinds there are, and how each is read."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from src.errors import UserError
from src.pictures.images import open_image

MaskReader = Callable[[Path], np.ndarray]
"""Reads a mask file as H×W uint8."""

_GREY_TOLERANCE = 32  # by how many levels grey channels may differ: JPEG shifts them a little
_PALETTE_TOLERANCE = 8  # the same for a palette's colours, which no JPEG has shifted
_MAX_CLASS_INDEX = 30  # smaller numbers beside 255 alone look like class indices, not like grey


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask of object and background.

    The first of these rules that fits the file decides:

    1. Transparency: where a pixel is more than half transparent, the object is what is opaque.
    2. A palette in colours: whatever is not black is object.
    3. Grey, a grey palette, or RGB of nearly equal channels: object where > 127 of 255 (16 bits:
       > 32767 of 65535). If the brightest value is 1, the object is where it is 1.

    Args:
        path: the mask file.

    Returns:
        H×W uint8, 1 for the object and 0 for the background.

    Raises:
        UserError: the file cannot be read, is a colour image, or holds class indices: no value
            is above 127 though it is not a mask of 0 and 1, or there are small numbers and 255
            alone (which then marks pixels to ignore).

    Example:
        >>> read_mask("masks/0001.png").max()  # doctest: +SKIP
        1
    """
    return _to_object(open_image(path), path)


def _to_object(image: Image.Image, path: str | Path) -> np.ndarray:
    """Apply the rules of :func:`read_mask`."""
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() <= 127:
            return _threshold(alpha, path)
    if image.mode == "LA":
        return _threshold(np.asarray(image.getchannel("L")), path)
    if len(image.getbands()) == 1 and image.mode != "P":
        values = np.asarray(image)
        if image.format not in ("JPEG", "MPO"):  # which put small numbers beside every edge
            _refuse_class_indices(values, path)
        return _threshold(values, path)
    brightest, difference = _channel_range(image)
    if image.mode in ("P", "PA") and difference > _PALETTE_TOLERANCE:
        return (brightest > 0).view(np.uint8)
    if difference > _GREY_TOLERANCE:
        raise UserError(f"{path}: a colour image, not a mask; expected grey, 0 and 255")
    return _threshold(brightest, path)


def _threshold(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Rule 3 of :func:`read_mask`."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{path}: holds values that are not finite; a mask must be 0 and 1")
    highest = float(values.max(initial=0))
    if values.dtype == bool or highest <= 1:
        return (values > 0.5).view(np.uint8)
    white = 255 if highest <= 255 else 65535
    if highest <= white // 2:
        raise UserError(
            f"{path}: the maximum is {highest:g}, so the mask would be empty; a mask must "
            "be 0 and 1, or 0 and 255 (object where > 127)",
            advice=f"for class indices pass {{num_classes}} {highest + 1:g}"
            if highest < 64
            else None,
        )
    return (values > white // 2).view(np.uint8)


def _refuse_class_indices(values: np.ndarray, path: str | Path) -> None:
    """Small numbers and 255 with nothing between them are classes, and pixels to ignore."""
    if values.dtype != np.uint8 or not ((values - 1) < _MAX_CLASS_INDEX).any():
        return
    levels = np.unique(values)
    if levels[-1] == 255 and not ((levels > _MAX_CLASS_INDEX) & (levels < 255)).any():
        raise UserError(
            f"{path}: holds {_listed(levels.tolist())}, which look like class indices and 255 for "
            "pixels to ignore; a mask must be 0 and 1, or 0 and 255",
            advice=f"for classes pass {{num_classes}} {levels[-2] + 1} {{ignore_index}} 255",
        )


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:6]))


def is_colour(image: Image.Image) -> bool:
    """Whether the image has colours, rather than levels of grey alone."""
    several = len(image.getbands()) >= 3 or image.mode in ("P", "PA")
    return several and _channel_range(image)[1] > _GREY_TOLERANCE


def _channel_range(image: Image.Image) -> tuple[np.ndarray, int]:
    """The brightest channel of each pixel, and the largest difference between channels."""
    colours = np.asarray(image.convert("RGB"))
    brightest = colours.max(-1)
    return brightest, int((brightest - colours.min(-1)).max(initial=0))


def read_classes(path: str | Path, classes: int, ignore_index: int | None = None) -> np.ndarray:
    """Read a mask of class indices: the indices of a palette, or grey values, as they are.

    Args:
        path: the mask file, 8-bit grey or palette.
        classes: how many there are; indices are below.
        ignore_index: a value that pixels may have beside the classes'.

    Returns:
        H×W uint8.

    Raises:
        UserError: the file cannot be read, is neither grey nor palette, or holds another index.
    """
    return _to_classes(open_image(path), path, classes, ignore_index)


def _to_classes(
    image: Image.Image, path: str | Path, classes: int, ignore_index: int | None
) -> np.ndarray:
    if image.mode not in ("L", "P", "1"):
        raise UserError(f"{path}: is {image.mode}; a mask of classes must be 8-bit grey or palette")
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
        raise UserError(
            f"{path}: holds index {_listed(wrong)}; with {classes} classes they are below "
            f"{classes}",
            advice=f"if it marks pixels to ignore, pass {{ignore_index}} {wrong[-1]}",
        )
    return indices


def read_two_classes(path: str | Path) -> np.ndarray:
    """Read a mask of two classes: the indices 0 and 1, of a palette too, or as :func:`read_mask`.

    Args:
        path: the mask file.

    Returns:
        H×W uint8 {0, 1}.
    """
    image = open_image(path)
    if image.mode == "P":
        if (indices := np.array(image)).max(initial=0) <= 1:
            return indices
        if is_colour(image):  # several objects or classes: who gives a number means the indices
            return _to_classes(image, path, 2, None)
    return _to_object(image, path)


def mask_reader(classes: int | None, ignore_index: int | None = None) -> MaskReader:
    """Choose how the masks of a data set are read.

    Args:
        classes: None reads object and background (:func:`read_mask`), a number class indices
            below it (:func:`read_classes`); for 2 without pixels to ignore both are taken.
        ignore_index: a mask's value for pixels to ignore.

    Returns:
        A function from a mask file to H×W uint8.
    """
    if classes is None:
        return read_mask
    if classes == 2 and ignore_index is None:
        return read_two_classes
    return partial(read_classes, classes=classes, ignore_index=ignore_index)


def balanced_weights(
    masks: Sequence[Path],
    read: MaskReader,
    classes: int,
    ignore_index: int | None = None,
) -> list[float]:
    """Class weights by median frequency balancing (Eigen & Fergus 2015, section 6.3.2).

    The weight of a class is median(f) / f, where f is its share of the pixels of those masks that
    hold it; it is 1 where no mask does.

    Args:
        masks: files to count.
        read: how they are read (:func:`mask_reader`).
        classes: how many there are.
        ignore_index: pixels of this value are not counted.

    Returns:
        One weight for each class.
    """

    def count(path: Path) -> np.ndarray:
        return np.bincount(read(path).ravel(), minlength=classes)[:classes]

    with ThreadPoolExecutor() as pool:
        counts = np.stack(list(pool.map(count, masks)))
    if ignore_index is not None:
        counts[:, ignore_index : ignore_index + 1] = 0  # where it is below the classes at all
    pixels = (counts.sum(1, keepdims=True) * (counts > 0)).sum(0)
    present = pixels > 0
    share = counts.sum(0)[present] / pixels[present]
    weights = np.ones(classes)
    weights[present] = np.median(share) / share
    return weights.tolist()
