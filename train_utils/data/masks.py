"""What a mask file may be, and how each kind is read."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from src import UserError
from src.pictures.images import open_image

_NEARLY_GREY = 32  # levels that channels may differ by: JPEG shifts grey a little


def read_mask(path: str | Path) -> np.ndarray:
    """A mask as H×W uint8 {0, 1}, 1 for the object. The rules, by what the file holds:

    - Transparency, where some pixel is more than half transparent: the object is the others.
    - A palette: by its colours; grey ones as grey below, others are object unless black.
    - Grey, or RGB with nearly equal channels: object where > 127 of 255. If the brightest value is
      1, it is a 0/1 mask and object where 1. 16 bits: the same over the whole range.

    Raises:
        UserError: unreadable, coloured, or a mask of class indices: nowhere brighter than 127
            though not a 0/1 mask, or of small numbers and 255 alone (which then means "ignore").
    """
    return _object(open_image(path), path)


def _object(image: Image.Image, path: str | Path) -> np.ndarray:
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() <= 127:
            return _binary(alpha, path)
    if len(image.getbands()) == 1 and image.mode != "P":
        values = np.asarray(image)
        if image.format not in ("JPEG", "MPO"):  # whose edges have small numbers beside them
            _refuse_indices(values, path)
        return _binary(values, path)
    if image.mode == "LA":
        return _binary(np.asarray(image.getchannel("L")), path)
    brightest, spread = _channels(image)
    if image.mode in ("P", "PA") and spread > 8:
        return (brightest > 0).view(np.uint8)
    if spread > _NEARLY_GREY:
        raise UserError(f"{path}: a coloured picture, not a mask; expected grey, 0 and 255")
    return _binary(brightest, path)


def is_coloured(image: Image.Image) -> bool:
    """Whether it is a picture in colours, and none of levels of grey."""
    several = len(image.getbands()) >= 3 or image.mode in ("P", "PA")
    return several and _channels(image)[1] > _NEARLY_GREY


def _channels(image: Image.Image) -> tuple[np.ndarray, int]:
    """The brightest of the three of each pixel, and by how much they differ at most."""
    colours = np.asarray(image.convert("RGB"))
    brightest = colours.max(-1)
    return brightest, int((brightest - colours.min(-1)).max(initial=0))


def read_classes(path: str | Path, classes: int, ignore_index: int | None = None) -> np.ndarray:
    """A mask of class indices as H×W uint8: a palette's indices or grey values, as they are.

    Raises:
        UserError: unreadable, neither grey nor palette, or an index that is no class.
    """
    return _indices(open_image(path), path, classes, ignore_index)


def _indices(
    image: Image.Image, path: str | Path, classes: int, ignore_index: int | None
) -> np.ndarray:
    if image.mode not in ("L", "P", "1"):
        raise UserError(f"{path}: is {image.mode}; a mask of classes must be 8-bit grey or palette")
    indices = np.array(image, dtype=np.uint8)
    present = np.unique(indices).tolist()
    wrong = [i for i in present if i >= classes and i != ignore_index]
    if wrong:
        if set(present) <= {0, 255}:
            advice = "0 and 255 alone: an object's mask; leave --num-classes out"
        else:
            advice = "if it means pixels to leave out, give --ignore-index"
        raise UserError(
            f"{path}: holds index {', '.join(map(str, wrong[:6]))}, beyond --num-classes {classes} "
            f"({advice})"
        )
    return indices


def read_two_classes(path: str | Path) -> np.ndarray:
    """A mask of the indices 0 and 1, of a palette's too, or one as :func:`read_mask` takes it."""
    image = open_image(path)
    if image.mode == "P":
        if (indices := np.array(image)).max(initial=0) <= 1:
            return indices
        if is_coloured(image):  # several objects or classes: who gives a number means these
            return _indices(image, path, 2, None)
    return _object(image, path)


def mask_reader(
    classes: int | None, ignore_index: int | None = None
) -> Callable[[str | Path], np.ndarray]:
    """How masks are read: those of ``classes`` as class indices; None is object and background. Two
    classes without pixels to be ignored may be either.
    """
    if classes is None:
        return read_mask
    if classes == 2 and ignore_index is None:
        return read_two_classes
    return partial(read_classes, classes=classes, ignore_index=ignore_index)


def balanced_weights(
    masks: Sequence[Path],
    read: Callable[[Path], np.ndarray],
    classes: int,
    ignore_index: int | None = None,
) -> list[float]:
    """Median frequency balancing (Eigen & Fergus 2015, section 6.3.2; SegNet's): the weight of a
    class is median(f) / f, f its share of the pixels of those masks that have it; 1 where none has.
    """

    def count(path: Path) -> np.ndarray:
        indices = read(path)
        kept = indices[indices != ignore_index] if ignore_index is not None else indices
        return np.bincount(kept.ravel(), minlength=classes)[:classes]

    with ThreadPoolExecutor() as pool:
        counts = np.stack(list(pool.map(count, masks)))
    pixels = (counts.sum(1, keepdims=True) * (counts > 0)).sum(0)
    present = pixels > 0
    share = counts.sum(0)[present] / pixels[present]
    weights = np.ones(classes)
    weights[present] = np.median(share) / share
    return weights.tolist()


def _refuse_indices(values: np.ndarray, path: str | Path) -> None:
    """Small numbers and 255 with nothing between: classes, and the pixels to be ignored."""
    if values.dtype == np.uint8 and ((values - 1) < 30).any():
        levels = np.unique(values)
        if levels[-1] == 255 and not ((levels > 30) & (levels < 255)).any():
            raise UserError(
                f"{path}: holds {', '.join(map(str, levels[:6]))}: class indices, it seems, and "
                "255 for pixels to be ignored; a mask must be 0 and 1, or 0 and 255; for classes "
                f"give --num-classes {levels[-2] + 1} --ignore-index 255"
            )


def _classes_meant(highest: float) -> str:
    return f"; for class indices give --num-classes {highest + 1:g}" if highest < 64 else ""


def _binary(values: np.ndarray, path: str | Path) -> np.ndarray:
    highest = float(values.max(initial=0))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{path}: holds values that are not finite; a mask must be 0 and 1")
    if values.dtype == bool or highest <= 1:
        return (values > 0.5).view(np.uint8)
    full = 255 if highest <= 255 else 65535
    if highest <= full // 2:
        raise UserError(
            f"{path}: brightest value {highest:g}, so nothing in it is object; a mask must be "
            f"0 and 1, or 0 and 255 (object where > 127){_classes_meant(highest)}"
        )
    return (values > full // 2).view(np.uint8)
