"""Settings of the data: where images and masks are, and what the masks mean."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from src import UserError

from ..data.masks import MASK_KINDS, mask_reader
from ..kinds import NUMBER, PATH, SWITCH, Kind, one_of, setting
from .group import Group, check_count

_data = partial(setting, "data")


@dataclass(frozen=True, kw_only=True)
class DataSettings(Group):
    """What is trained on."""

    data_path: tuple[Path, ...] | None = _data(
        PATH,
        "DUTS layout (DUTS-TR/DUTS-TR-Image, DUTS-TR/DUTS-TR-Mask, DUTS-TE/...), or images/ and "
        "masks/ with optional train.txt, val.txt and test.txt (names without suffix, one a line)",
        several=True,
        fact="pictures",
    )
    image_dir: Path | None = _data(PATH, "images, in place of --data-path", fact="pictures")
    mask_dir: Path | None = _data(PATH, "their masks", fact="pictures")
    skip_invalid: bool = _data(
        SWITCH, "leave invalid pairs out; decodes every file once", False, fact="pictures"
    )
    masks: str = _data(
        one_of(*MASK_KINDS),
        "what the masks are, whatever they look like: binary: object and background, cut at "
        "--mask-threshold; soft: levels from 0 to 1, kept (mattes); classes: indices, with "
        "--num-classes (default: decided by all masks of a set together)",
        "auto",
    )
    mask_threshold: int | None = _data(
        Kind(int, "T", 0, 255),
        "a mask is object where it is above this level of 255 (default: 127)",
    )
    data_shares: tuple[float, ...] | None = _data(
        NUMBER,
        "uses of each image of each --data-path an epoch: 2 twice, 0.5 every other one (default: "
        "1). The first set selects the best weights, by its val.txt or else its test images",
        several=True,
    )
    num_classes: int | None = _data(
        Kind(int, "K", 2, 256),
        "masks hold class indices below K, grey or palette, and the network gives a map for each "
        "(default: masks of object and background, one map)",
    )
    ignore_index: int | None = _data(
        Kind(int, "I", 0, 256), "with --num-classes: the mask value to ignore"
    )

    def _complete(self) -> None:
        if self.data_shares is None:
            self._set("data_shares", (1.0,) * len(self.data_path or (None,)))

    def _check(self) -> None:
        mask_reader(self.num_classes, self.ignore_index, self.masks, self.mask_threshold)
        sets = len(self.data_path or (None,))
        check_count("data_shares", self.data_shares or (), sets, "one for each {data_path}")
        if not all(self.data_shares or ()):
            advice = "leave that set out of {data_path}"
            raise UserError("a share of 0", "data_shares", advice=advice)
        if self.ignore_index is not None and self.num_classes is None:
            advice = "pass {num_classes} too"
            raise UserError("only masks of classes have one", "ignore_index", advice=advice)

    @property
    def soft_cut(self) -> int | None:
        """The level of 255 above which a soft mask is object; None of other masks."""
        threshold = 127 if self.mask_threshold is None else self.mask_threshold
        return threshold if self.masks == "soft" else None
