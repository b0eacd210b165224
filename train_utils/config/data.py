"""Settings of the data: where images and masks are, and what the masks mean."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from src import UserError

from ..data.masks import KNOWN_TABLES, MASK_KINDS, MaskRule, count_classes, mask_reader
from ..kinds import NUMBER, PATH, POSITIVE, SWITCH, TEXT, Kind, one_of, setting
from .group import Group, check_count

_data = partial(setting, "data")


@dataclass(frozen=True, kw_only=True)
class DataSettings(Group):
    """What to train on."""

    data_path: tuple[Path, ...] | None = _data(
        PATH,
        "DUTS layout (DUTS-TR/DUTS-TR-Image, DUTS-TR/DUTS-TR-Mask, DUTS-TE/...), or images/ and "
        "masks/ with optional train.txt, val.txt and test.txt (names without suffix, one per "
        "line); or images and annotations, or a folder for each scene (docs/training/data.md)",
        several=True,
        fact="images",
    )
    image_dir: Path | None = _data(PATH, "images, in place of --data-path", fact="images")
    mask_dir: Path | None = _data(PATH, "their masks", fact="images")
    annotations: tuple[Path | str, ...] | None = _data(
        Kind(Path, "FILE|DIR|auto", words=("auto",)),
        "objects to draw as masks: COCO or LabelMe json, YOLO txt, or a folder of these; one for "
        "each --data-path, or alone (default: those in --data-path, where it has no masks)",
        several=True,
        fact="images",
    )
    skip_invalid: bool = _data(
        SWITCH, "leave invalid pairs out; decodes every file once", False, fact="images"
    )
    masks: str = _data(
        one_of(*MASK_KINDS),
        "what the masks are, whatever they look like: binary: object and background, cut at "
        "--mask-threshold; soft: levels from 0 to 1, kept (mattes); classes: indices, with "
        "--num-classes (default: decided from all masks of a set together)",
        "auto",
    )
    mask_threshold: int | None = _data(
        Kind(int, "T", 0, 255),
        "the level, of 255, above which a mask is object (default: 127)",
    )
    data_shares: tuple[float, ...] | None = _data(
        NUMBER,
        "how often an epoch uses each image of each --data-path: 2 is twice, 0.5 every second one "
        "(default: 1). The first set selects the best weights, by its val.txt or else its test "
        "images",
        several=True,
    )
    num_classes: int | None = _data(
        Kind(int, "K", 2, 256),
        "masks hold class indices below K, grey or palette, and the network gives a map for each "
        "(default: masks of object and background, one map)",
    )
    classes: tuple[str, ...] | None = _data(
        TEXT,
        "names of the classes, for annotations: an object is drawn with the position of its class "
        "in this list; background is 0, unless it is listed (default: classes.txt, or all objects "
        "alike)",
        several=True,
    )
    class_colours: Path | str | None = _data(
        Kind(Path, "FILE|voc|cityscapes", words=tuple(KNOWN_TABLES)),
        "colours of the classes, for masks in colours: name r g b, one per line; or those of "
        "PASCAL VOC or Cityscapes (default: those in classes.txt)",
        fact="images",
    )
    ignore_index: int | None = _data(
        Kind(int, "I", 0, 256), "with --num-classes: the mask value to ignore"
    )

    unlabelled: tuple[Path, ...] | None = _data(
        PATH,
        "images without masks, including subfolders, to learn from the maps of --teacher alone; "
        "an additional value of --data-shares says how often",
        several=True,
        fact="images",
    )
    overfit: int | None = _data(
        POSITIVE,
        "train and score on the first N pairs themselves, neither cropped, flipped nor augmented: "
        "the first test of a new set, network or loss",
    )

    def _complete(self) -> None:
        if self.classes and self.num_classes is None:
            self._set("num_classes", count_classes(self.classes, self.ignore_index))
        if self.data_shares is None:
            self._set("data_shares", (1.0,) * self._shared)
        elif self.unlabelled and len(self.data_shares) == self._shared - 1:
            self._set("data_shares", (*self.data_shares, 1.0))

    @property
    def _shared(self) -> int:
        """How many sets have a share."""
        return len(self.data_path or (None,)) + bool(self.unlabelled)

    def _check(self) -> None:
        self.mask_rule()
        if self.annotations:
            count = len(self.data_path or (None,))
            check_count("annotations", self.annotations, count, "one for each {data_path}, or auto")
        shares = self.data_shares or ()
        more = ", and one for {unlabelled}" if self.unlabelled else ""
        check_count("data_shares", shares, self._shared, "one for each {data_path}" + more)
        # A set that is only scored, next to images without masks, may have a share of 0.
        if not all(shares) and not (self.unlabelled and shares[-1]):
            advice = "leave that set out of {data_path}"
            raise UserError("a share of 0", "data_shares", advice=advice)
        if self.overfit and (self.unlabelled or {*shares} != {1.0}):
            what = "data_shares" if {*shares} != {1.0} else "unlabelled"
            advice = f"leave {{{what}}} out"
            raise UserError("trains only on the first pairs", "overfit", self.overfit, advice)
        if self.ignore_index is not None and self.num_classes is None:
            advice = "pass {num_classes} too"
            raise UserError(
                "only masks of classes have such a value", "ignore_index", advice=advice
            )

    def mask_rule(self) -> MaskRule:
        """How masks are read.

        Raises:
            UserError: settings contradict each other.
        """
        return mask_reader(
            self.num_classes,
            self.ignore_index,
            self.masks,
            self.mask_threshold,
            self.classes or (),
            self.class_colours,
        )

    @property
    def soft_cut(self) -> int | None:
        """The level of 255 above which a soft mask is object; None for other masks."""
        threshold = 127 if self.mask_threshold is None else self.mask_threshold
        return threshold if self.masks == "soft" else None
