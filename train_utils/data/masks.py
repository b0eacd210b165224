"""Mask files: which kinds there are, how each is read, and which kind the masks of a set are."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from src.errors import UserError
from src.pictures.images import open_image

MaskReader = Callable[[Path], np.ndarray]
"""Reads a mask file as H×W uint8."""
MASK_KINDS = ("auto", "binary", "soft", "classes")

_GREY_TOLERANCE = 32  # by how many levels grey channels may differ: JPEG shifts them a little
_PALETTE_TOLERANCE = 8  # the same for a palette's colours, which no JPEG has shifted
_MAX_CLASS_INDEX = 30  # smaller numbers beside 255 alone look like class indices, not like grey


@dataclass(frozen=True)
class MaskRule:
    """How the masks of a data set are read; call it with a file.

    Args:
        kind: ``auto`` and ``binary`` give {0, 1}, ``soft`` gives levels 0 … 255, ``classes`` class
            indices. ``auto`` gives class indices where ``classes`` is a number.
        threshold: a mask is object where it is above this level of 255.
        classes: how many there are; None for object and background.
        ignore_index: of classes: a value that pixels may have beside them.
        ones: in a mask whose highest value is 1, that is the object; else it is 1 of 255.
        refused: which values are an error: ``dark`` (some, none of them above the threshold) and
            ``indices`` (small numbers and 255 with nothing between them).
    """

    kind: str = "auto"
    threshold: int = 127
    classes: int | None = None
    ignore_index: int | None = None
    ones: bool = True
    refused: tuple[str, ...] = ("dark", "indices")

    @property
    def of_classes(self) -> bool:
        """Whether every mask holds class indices, and no levels of grey."""
        two = self.classes == 2 and self.ignore_index is None
        return self.kind == "classes" or (self.classes is not None and not two)

    def __call__(self, path: str | Path) -> np.ndarray:
        """Read a mask file as H×W uint8.

        Raises:
            UserError: it cannot be read, or holds values that the rule refuses.
        """
        image = open_image(path)
        if self.of_classes:
            return _to_classes(image, path, self.classes or 2, self.ignore_index)
        if self.classes == 2 and self.kind == "auto" and image.mode == "P":
            if (indices := np.array(image)).max(initial=0) <= 1:
                return indices
            if is_colour(image):  # several objects: who gives a number means the indices
                return _to_classes(image, path, 2, None)
        values, may_be_indices = grey_values(image, path)
        white = white_of(values, self.ones)
        if "indices" in self.refused and may_be_indices:
            _refuse_class_indices(values, path)
        if "dark" in self.refused:
            self._refuse_dark(values, white, path)
        if self.kind == "soft":
            return (values.clip(0, white) / white * 255).round().astype(np.uint8)
        return (values > self.cut(white)).view(np.uint8)

    def cut(self, white: float) -> float:
        """The value above which a mask is object, whose white is this."""
        return (self.threshold + 0.5) / 255 * white

    def _refuse_dark(self, values: np.ndarray, white: float, path: str | Path) -> None:
        highest = float(values.max(initial=0))
        if not highest or highest > self.cut(white):
            return
        hint = f"for class indices pass {{num_classes}} {highest + 1:g}, for grey levels "
        if highest >= 64:
            hint = "for grey levels "
        raise UserError(
            f"{path}: the maximum is {highest:g}, so the mask would be empty; a mask must "
            f"be 0 and 1, or 0 and 255 (object where > {self.threshold})",
            advice=f"{hint}a lower {{mask_threshold}}, or {{masks}} binary to take it as empty",
        )


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask of object and background.

    The first of these rules that fits the file decides:

    1. Transparency: where a pixel is more than half transparent, the object is what is opaque.
    2. A palette in colours: whatever is not black is object.
    3. Grey, a grey palette, or RGB of nearly equal channels: object where > 127 of 255 (16 bits:
       > 32767 of 65535). If the brightest value is 1, the object is where it is 1.

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
    return MaskRule()(path)


def grey_values(image: Image.Image, path: str | Path) -> tuple[np.ndarray, bool]:
    """A mask's values by the rules of :func:`read_mask`, before any threshold, and whether they
    may be class indices.

    Args:
        image: the mask.
        path: its file, for messages.

    Raises:
        UserError: a colour image, or values that are not finite.
    """
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() <= 127:
            return alpha, False
    if image.mode == "LA":
        return np.asarray(image.getchannel("L")), False
    if len(image.getbands()) == 1 and image.mode != "P":
        values = np.asarray(image)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise UserError(f"{path}: holds values that are not finite; a mask must be 0 and 1")
        # JPEG puts small numbers beside every edge.
        return values, image.format not in ("JPEG", "MPO")
    brightest, difference = _channel_range(image)
    if image.mode in ("P", "PA") and difference > _PALETTE_TOLERANCE:
        return brightest > 0, False
    if difference > _GREY_TOLERANCE:
        raise UserError(f"{path}: a colour image, not a mask; expected grey, 0 and 255")
    return brightest, False


def white_of(values: np.ndarray, ones: bool = True) -> float:
    """The value that is white: 1, 255 or 65535; 1 of integers only where ``ones`` allows it."""
    highest = float(values.max(initial=0))
    if values.dtype == bool or (highest <= 1 and (ones or values.dtype.kind == "f")):
        return 1
    return 255 if highest <= 255 else 65535


def _refuse_class_indices(values: np.ndarray, path: str | Path) -> None:
    """Refuse small numbers and 255 alone: classes, and pixels to ignore."""
    if look_like_indices(values):
        levels = np.unique(values)
        listed = str(levels.tolist()[:6])[1:-1]
        raise UserError(
            f"{path}: holds {listed}, which look like class indices and 255 for pixels to ignore; "
            "a mask must be 0 and 1, or 0 and 255",
            advice=f"for classes pass {{num_classes}} {levels[-2] + 1} {{ignore_index}} 255, for "
            "grey levels {masks} binary",
        )


def look_like_indices(values: np.ndarray) -> bool:
    """Whether there are small numbers and 255, and nothing between them."""
    if values.dtype != np.uint8 or not ((values - 1) < _MAX_CLASS_INDEX).any():
        return False
    middle = (values > _MAX_CLASS_INDEX) & (values < 255)
    return bool(values.max() == 255 and not middle.any())


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
    """Read a mask of class indices H×W uint8: those of a palette, or grey values, as they are.

    Args:
        path: the mask file, 8-bit grey or palette.
        classes: how many there are; indices are below.
        ignore_index: a value that pixels may have beside the classes'.

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
            f"{path}: holds index {str(wrong[:6])[1:-1]}; with {classes} classes they are below "
            f"{classes}",
            advice=f"if it marks pixels to ignore, pass {{ignore_index}} {wrong[-1]}",
        )
    return indices


def mask_reader(
    classes: int | None,
    ignore_index: int | None = None,
    kind: str = "auto",
    threshold: int | None = None,
) -> MaskRule:
    """Choose how the masks of a data set are read.

    Args:
        classes: None reads object and background (:func:`read_mask`), a number class indices
            below it (:func:`read_classes`); for 2 without pixels to ignore both are taken.
        ignore_index: a mask's value for pixels to ignore.
        kind: of ``MASK_KINDS``: what the masks are, whatever they look like.
        threshold: the level of 255 above which a mask is object, whatever the masks look like.

    Returns:
        A function from a mask file to H×W uint8.

    Raises:
        UserError: these contradict each other.
    """
    if kind == "classes" and classes is None:
        raise UserError("how many are there?", "masks", kind, "pass {num_classes} too")
    rule = MaskRule(kind, 127 if threshold is None else threshold, classes, ignore_index)
    parameter, value = ("mask_threshold", threshold) if kind == "auto" else ("masks", kind)
    fixed = kind in ("binary", "soft") or threshold is not None
    if fixed and (kind in ("soft", "classes") or rule.of_classes) and classes is not None:
        raise UserError("of object and background only", parameter, value, "omit {num_classes}")
    if not fixed:
        return rule
    rule = replace(rule, kind="binary" if kind == "auto" else kind)
    return replace(rule, refused=(), ones=threshold is None)


_SAMPLE = 256  # masks that are looked at first: values are odd in many masks of a set or in none


class _Levels(NamedTuple):
    """What one mask says of its set."""

    path: Path
    highest: float
    dark: bool  # some values, none above the threshold
    indices: bool  # small numbers and 255 alone
    soft: bool  # levels between 0 and white
    bright: bool  # among these, near to white, where no class index is


def decide(rule: MaskRule, masks: Sequence[Path]) -> tuple[MaskRule, list[str]]:
    """Decide by all masks of a data set together how each of them is read.

    Where one in ten or more has levels near to white, the set is one of grey levels: small numbers
    in one of its masks are no class indices, and a dark mask is an empty one. Where fewer than one
    in ten look like class indices, the others decide too.

    Args:
        rule: of :func:`mask_reader`.
        masks: all mask files of the set.

    Returns:
        The rule for this set, and what the user should know of its masks.
    """
    if rule.of_classes:
        return rule, []
    levels = _inspect(masks[:: max(1, len(masks) // _SAMPLE)], rule)
    if any(one.dark or one.indices or one.soft for one in levels):
        levels = _inspect(masks, rule)
    filled = [one for one in levels if one.highest]
    grey = 10 * sum(one.bright for one in filled) >= max(1, len(filled))
    others = not grey and 10 * sum(one.indices for one in filled) < len(filled)
    if grey:
        rule = replace(rule, refused=())
    elif others and rule.refused:
        rule = replace(rule, refused=("dark",))
    cut = grey or rule.kind == "soft" or not rule.ones
    rule = replace(rule, ones=not cut or all(one.highest <= 1 for one in filled))
    return rule, list(_describe(rule, levels))


def _describe(rule: MaskRule, levels: Sequence[_Levels]) -> Iterator[str]:
    cut = f"{rule.threshold} of 255"
    filled = [one for one in levels if one.highest]
    if empty := len(levels) - len(filled):
        yield f"{empty} of the {len(levels)} masks inspected are empty: all their values are 0"
    dark = [one for one in filled if one.dark or (one.highest == 1 and not rule.ones)]
    if dark and "dark" not in rule.refused:
        verb = "have no value" if rule.kind == "soft" else "come out empty, without a value"
        yield f"{len(dark)} masks {verb} above {cut}, such as {dark[0].path}"
    odd = [one for one in filled if one.indices]
    if odd and "indices" not in rule.refused:
        yield f"{len(odd)} masks of small numbers and 255 are read as grey, such as {odd[0].path}"
    soft = sum(one.soft for one in filled)
    if soft:
        done = "kept" if rule.kind == "soft" else f"object where > {cut}"
        yield f"{soft} of {len(filled)} masks are soft (levels between 0 and 255): {done}"
    ones = sum(one.highest == 1 for one in filled)
    if rule.ones and 0 < ones < len(filled):
        yield f"{ones} masks hold 0 and 1, others reach 255: object where 1 in the former"


def _inspect(masks: Sequence[Path], rule: MaskRule) -> list[_Levels]:
    """What masks hold; those that cannot be read are named elsewhere."""

    def inspect(path: Path) -> _Levels | None:
        with suppress(UserError):
            values, may_be_indices = grey_values(open_image(path), path)
            white, highest = white_of(values), float(values.max(initial=0))
            of_255 = values.astype(np.float32) / white * 255 if white != 255 else values
            between = of_255[(of_255 >= 8) & (of_255 <= 254)]  # JPEG puts less beside 0
            return _Levels(
                path,
                highest,
                dark=0 < highest <= rule.cut(white),
                indices=may_be_indices and look_like_indices(values),
                soft=bool((between <= 247).any()) and highest > _MAX_CLASS_INDEX,
                bright=bool((between > 190).any()),
            )
        return None

    with ThreadPoolExecutor() as pool:
        return [found for found in pool.map(inspect, masks) if found]
