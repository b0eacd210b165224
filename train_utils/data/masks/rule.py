"""How the masks of a data set are read: one rule for all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from src.errors import UserError
from src.pictures.images import open_image

from .classes import from_colours, has_only, to_classes
from .known import KNOWN_TABLES
from .names import (
    ClassTable,
    Labels,
    count_classes,
    number_classes,
    read_table,
    without_ignored,
)
from .values import channel_range, grey_values, is_colour, look_like_indices, white_of

MaskReader = Callable[[Path], np.ndarray]
"""Reads a mask file as H×W uint8."""
MASK_KINDS = ("auto", "binary", "soft", "classes")


@dataclass(frozen=True)
class MaskRule:
    """How the masks of a data set are read; call it with a file.

    Args:
        kind: ``auto`` and ``binary`` give {0, 1}, ``soft`` gives levels 0 … 255, ``classes`` class
            indices. ``auto`` gives class indices if ``classes`` is a number.
        threshold: a mask is object where it is above this level of 255.
        classes: how many there are; None for object and background.
        ignore_index: for classes: a value that pixels may have besides them.
        ones: in a mask whose highest value is 1, that is the object; else it is 1 of 255.
        deep: masks of more than 8 bits have 65535 for white, however dark one of them is.
        by_alpha: masks with an alpha channel are read from it, even if one is opaque everywhere.
        refused: which values are an error: ``dark`` (some, none of them above the threshold) and
            ``indices`` (small numbers and 255 with nothing between them).
        names: of the classes, as the user gave them; () if the data set names them.
        table: names and colours of the data set's classes.
    """

    kind: str = "auto"
    threshold: int = 127
    classes: int | None = None
    ignore_index: int | None = None
    ones: bool = True
    deep: bool = False
    by_alpha: bool = False
    refused: tuple[str, ...] = ("dark", "indices")
    names: tuple[str, ...] = ()
    table: ClassTable | None = None

    @property
    def of_classes(self) -> bool:
        """Whether every mask holds class indices, rather than grey levels."""
        two = self.classes == 2 and self.ignore_index is None
        return self.kind == "classes" or (self.classes is not None and not two)

    def __call__(self, path: str | Path) -> np.ndarray:
        """Read a mask file as H×W uint8.

        Raises:
            UserError: it cannot be read, or holds values that the rule refuses.
        """
        return self.read(open_image(path), path)

    def read(self, image: Image.Image, path: str | Path) -> np.ndarray:
        """The same for an open image; ``path`` is for messages."""
        if self.reads_colours(image):
            return from_colours(image, path, self.colours, self.ignore_index)
        if self.of_classes:
            return to_classes(image, path, self.classes or 2, self.ignore_index)
        if self.classes == 2 and self.kind == "auto" and image.mode == "P":
            if (indices := np.array(image)).max(initial=0) <= 1:
                return indices
            if is_colour(image):  # several objects: given a number of classes, these are indices
                return to_classes(image, path, 2, None)
        values, may_be_indices = grey_values(image, path, self.by_alpha)
        white = white_of(values, self.ones, self.deep)
        if "indices" in self.refused and may_be_indices:
            _refuse_class_indices(values, path)
        if "dark" in self.refused:
            self._refuse_dark(values, white, path)
        if self.kind == "soft":
            return (values.clip(0, white) / white * 255).round().astype(np.uint8)
        return (values > self.cut(white)).view(np.uint8)

    @cached_property
    def colours(self) -> dict[tuple[int, int, int], int]:
        """The value of each colour of the table."""
        table = self.table
        if table is None or not table.colours:
            return {}
        labels = self.table_values(table.names, table.path or "classes")
        values = {colour: labels.value(name) for name, colour in table.colours}
        if (0, 0, 0) not in values and self.classes != len(table.names):
            values[0, 0, 0] = labels.background
        return {colour: value for colour, value in values.items() if value is not None}

    def reads_colours(self, image: Image.Image) -> bool:
        """Whether an image is read by the table's colours: a mask of classes if it is not grey, a
        mask of an object if it has only these colours.
        """
        if not self.table or not self.table.colours or image.mode not in ("RGB", "RGBA", "P"):
            return False
        if self.classes is None:
            return image.mode != "P" and has_only(image, self.colours)
        return image.mode != "P" or bool(channel_range(image)[1])

    def label_values(self, names: Sequence[str] = (), source: object = "classes") -> Labels:
        """The values that labelled objects are drawn with, to match masks read by this rule.

        Args:
            names: of the data set's classes, if the user has given none.
            source: where they are from, for messages.

        Raises:
            UserError: these names do not fit the number of classes.
        """
        if self.classes is None:
            return Labels(object=255 if self.kind == "soft" else 1)
        if self.names:
            names, source = self.names, "classes"
        elif self.classes == 2 and count_classes(names, self.ignore_index) != 2:
            return Labels(ignored=self.ignore_index)  # object and background
        return number_classes(names, self.classes, self.ignore_index, source)

    def table_values(self, names: Sequence[str] = (), source: object = "classes") -> Labels:
        """The values that classes have in mask files, by their indices or colours: if there are as
        many names as classes, with ``void`` or without it, each has its line number, from 0; else
        as :meth:`label_values`.

        Args:
            names, source: as for :meth:`label_values`.

        Raises:
            UserError: as :meth:`label_values`.
        """
        named = self.names or names
        counted_ones = named if self.ignore_index is None else without_ignored(named)
        lines = next((some for some in (named, counted_ones) if len(some) == self.classes), None)
        if lines is None:
            return self.label_values(names, source)
        return Labels({name: index for index, name in enumerate(lines)}, ignored=self.ignore_index)

    def cut(self, white: float) -> float:
        """The value above which a mask with this white is object."""
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

    1. Transparency: if any pixel is more than half transparent, the object is what is opaque.
    2. A palette in colours: whatever is not black is object.
    3. Grey, a grey palette, or RGB of nearly equal channels: object where > 127 of 255 (16 bits:
       > 32767 of 65535). If the brightest value is 1, the object is where it is 1.

    Returns:
        H×W uint8, 1 for the object and 0 for the background.

    Raises:
        UserError: the file cannot be read, is a colour image, or holds class indices: no value
            is above 127 though it is not a mask of 0 and 1, or there are only small numbers and 255
            (which then marks pixels to ignore).

    Example:
        >>> read_mask("masks/0001.png").max()  # doctest: +SKIP
        1
    """
    return MaskRule()(path)


def _refuse_class_indices(values: np.ndarray, path: str | Path) -> None:
    """Refuse masks of only small numbers and 255: classes, and pixels to ignore."""
    if look_like_indices(values):
        levels = np.unique(values)
        listed = str(levels.tolist()[:6])[1:-1]
        raise UserError(
            f"{path}: holds {listed}, which look like class indices and 255 for pixels to ignore; "
            "a mask must be 0 and 1, or 0 and 255",
            advice=f"for classes pass {{num_classes}} {levels[-2] + 1} {{ignore_index}} 255, for "
            "grey levels {masks} binary",
        )


def mask_reader(
    classes: int | None,
    ignore_index: int | None = None,
    kind: str = "auto",
    threshold: int | None = None,
    names: Sequence[str] = (),
    colours: str | Path | None = None,
) -> MaskRule:
    """Choose how the masks of a data set are read.

    Args:
        classes: None reads object and background (:func:`read_mask`), a number class indices
            below it (:func:`~train_utils.data.masks.read_classes`); for 2 without pixels to ignore
            both are accepted.
        ignore_index: a mask's value for pixels to ignore.
        kind: of ``MASK_KINDS``: what the masks are, whatever they look like.
        threshold: the level of 255 above which a mask is object, whatever the masks look like.
        names: of the classes, for annotations that name them; by default the data set's own.
        colours: a file of names and colours (:func:`~train_utils.data.masks.read_table`), ``voc``
            or ``cityscapes``, for masks that show classes in colours; by default the data set's
            ``classes.txt``.

    Returns:
        A function from a mask file to H×W uint8.

    Raises:
        UserError: these contradict each other.
    """
    if kind == "classes" and classes is None:
        raise UserError("the number of classes is missing", "masks", kind, "pass {num_classes} too")
    level = 127 if threshold is None else threshold
    table = _read_colours(colours, classes, ignore_index) if colours else None
    rule = MaskRule(kind, level, classes, ignore_index, names=tuple(names), table=table)
    if names:  # for annotations, more is checked when they are read
        rule.table_values()
    _check_kind(rule, threshold)
    fixed = kind in ("binary", "soft") or threshold is not None
    if not fixed:
        return rule
    rule = replace(rule, kind="binary" if kind == "auto" else kind)
    return replace(rule, refused=(), ones=threshold is None)


def _read_colours(colours: str | Path, classes: int | None, ignore_index: int | None) -> ClassTable:
    known = KNOWN_TABLES.get(str(colours))
    if known and not Path(colours).is_file():
        own = len(known.names) - 1  # without void
        if classes not in (None, own):
            raise UserError(
                f"has {own} classes", "class_colours", colours, f"{{num_classes}} {own}"
            )
        if classes is not None and ignore_index is None:
            text = "its masks have pixels to ignore"
            raise UserError(text, "class_colours", colours, "pass {ignore_index} 255 too")
        return known
    table = read_table(colours)
    if not table.colours:
        advice = "expected name r g b, one per line"
        raise UserError("holds no colours", "class_colours", colours, advice)
    return table


def _check_kind(rule: MaskRule, threshold: int | None) -> None:
    """Refuse what only applies to object and background, if masks are of classes."""
    text = "applies to masks of object and background only"
    if rule.classes is None:
        return
    if rule.kind == "soft" or (rule.kind == "binary" and rule.of_classes):
        of_two = rule.kind == "binary" and rule.classes == 2
        spare = "ignore_index" if of_two else "classes" if rule.names else "num_classes"
        raise UserError(text, "masks", rule.kind, f"omit {{{spare}}}")
    if threshold is not None and rule.of_classes:
        raise UserError(text, "mask_threshold", threshold, "leave it out")
