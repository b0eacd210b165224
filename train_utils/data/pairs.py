"""Pairs of image and mask: matched by their names, checked by their headers, faults reported."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from src.errors import UserError
from src.pictures.images import open_image, oriented_size
from src.words import counted, first_ten

from .annotations import Drawing
from .masks import MaskReader, read_mask

FileId = tuple[int, int]
"""The identity of a file, whatever its name: the same for all links to it."""

_ASPECT_TOLERANCE = 0.02  # whole pixels change a scaled mask's by no more than this
_NAMINGS_TRIED = 16
_FAULTS_SHOWN = 10  # per kind
_ALIKE = 3  # most files of a fault to list singly, and most texts of a kind to group files by


@dataclass(frozen=True)
class Pair:
    """An image and its mask.

    Args:
        image: the image file.
        mask: the mask file, or the annotation that the mask is drawn from.
        rescaled: the mask differs in size from the image, with the same aspect ratio.
        read: how the mask is read; :meth:`load_mask` calls it.
        label: a unique name, if the image's stem is not unique.
    """

    image: Path
    mask: Path
    rescaled: bool = False
    read: MaskReader = field(default=read_mask, repr=False, compare=False)
    label: str = field(default="", repr=False, compare=False)

    @property
    def name(self) -> str:
        """The image's stem, which a mask's file is named after; with folders before it if images in
        several folders share it.
        """
        return self.label or self.image.stem

    @property
    def is_drawn(self) -> bool:
        """Whether the mask is drawn from an annotation, rather than a file."""
        return isinstance(self.read, Drawing)

    def load_mask(self) -> np.ndarray:
        """The mask, H×W uint8.

        Raises:
            UserError: it cannot be read.
        """
        return self.read(self.mask)

    def mask_size(self) -> tuple[int, int]:
        """Width and height of the mask, from its file's header or its annotation.

        Raises:
            UserError: the file cannot be read.
        """
        drawn = self.read.size if isinstance(self.read, Drawing) else None
        return drawn or oriented_size(self.image if self.is_drawn else self.mask)


@dataclass
class Inventory:
    """One split of a data set, as :func:`~train_utils.data.splits.find_splits` finds it.

    Args:
        split: ``train``, ``val``, ``test`` or ``all``.
        pairs: the valid ones.
        faults: what is wrong with the others.
        notes: for the user.
        held_out: of ``train``: the image files of the data set that must not be trained on.
        swapped: every pair is faulty, and the images can be read as masks.
        read: how the masks are read.
        class_names: by their index, if annotations name them.
    """

    split: str
    pairs: list[Pair] = field(default_factory=list)
    faults: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    held_out: dict[FileId, Path] = field(default_factory=dict)
    swapped: bool = False
    read: MaskReader = read_mask
    class_names: tuple[str, ...] = ()


class Naming(NamedTuple):
    """What masks' names have before and after the stem of their image."""

    before: str = ""
    after: str = ""

    def mask_of(self, stem: str) -> str:
        """The stem of an image's mask."""
        return f"{self.before}{stem}{self.after}"


def file_id(path: Path) -> FileId:
    """Identify a file; a link to it, symbolic or hard, has the same id."""
    status = path.stat()
    return status.st_dev, status.st_ino


def match(
    images: list[Path], masks: list[Path], wanted: Set[str], found: Inventory, scene: str = ""
) -> None:
    """Match images and masks by their names (:func:`find_naming`).

    Args:
        images, masks: all files of the two folders.
        wanted: the names of the images to add.
        found: what pairs, faults (of images without a mask, or with two) and notes are added to.
        scene: the scene that the two folders are of; an image's name is then ``SCENE/STEM``.
    """
    if not masks:  # already a fault
        return
    by_stem = {path.stem: path for path in masks}
    stems = {path.stem for path in images}
    naming = find_naming(stems, by_stem.keys())
    doubled = {*repeated_stems(images), *repeated_stems(masks)}
    faults: dict[str, None] = {}  # as an ordered set: two images of one name have one fault
    for path in images:
        name = f"{scene}/{path.stem}" if scene else path.stem
        if name not in wanted:
            continue
        mask = naming.mask_of(path.stem)
        if {path.stem, mask} & doubled:
            folder = path.parent.parent
            faults[f"{path.stem}: two images or two masks of this name in {folder}"] = None
        elif mask in by_stem:
            found.pairs.append(Pair(path, by_stem[mask], label=name if scene else ""))
        else:
            faults[f"{path}: no mask {mask}.* in {masks[0].parent}"] = None
    found.faults += map(UserError, faults)
    if any(naming):
        found.notes.append(f"the masks are called {naming.mask_of('NAME')}")
    unused = by_stem.keys() - {naming.mask_of(stem) for stem in stems}
    if unused:
        what = counted(len(unused), "mask has", "masks have")
        found.notes.append(f"{what} no image, such as {min(unused)}: not used")


def repeated_stems(files: Iterable[Path]) -> list[str]:
    """The stems that several files have."""
    return [stem for stem, count in Counter(path.stem for path in files).items() if count > 1]


def find_naming(images: Set[str], masks: Set[str]) -> Naming:
    """Find how masks are named after their images.

    1. If half of the images or more have a mask of their own stem, all masks are named that way.
    2. Else masks have one longer name, such as ``NAME_mask`` or ``gt-NAME``: the one that gives
       the most images a mask, if these are half of the images or more.
    3. Else as in 1, and the images without a mask are faults.

    Args:
        images: stems of the images.
        masks: stems of the masks.

    Returns:
        What is put before and after an image's stem.
    """
    if 2 * len(images & masks) >= len(images):
        return Naming()
    naming, count = most_frequent_naming(images, masks)
    return naming if 2 * count >= len(images) else Naming()


def most_frequent_naming(images: Set[str], masks: Set[str]) -> tuple[Naming, int]:
    """The longer name that gives the most images a mask, and how many."""
    ordered = sorted(images, key=lambda stem: (len(stem), stem))
    # From stems of all lengths: short ones are part of other names by chance.
    candidates = (
        Naming(*mask.partition(stem)[::2])
        for stem in ordered[:: max(1, len(ordered) // _NAMINGS_TRIED)]
        for mask in masks
        if stem in mask and stem != mask
    )
    tried = [naming for naming, _ in Counter(candidates).most_common(_NAMINGS_TRIED)]
    sample = ordered[:: max(1, len(ordered) // 500)]

    def count(naming: Naming, stems: Iterable[str]) -> int:
        return sum(naming.mask_of(stem) in masks for stem in stems)

    best = max(tried, key=lambda naming: count(naming, sample), default=None)
    return (best, count(best, images)) if best else (Naming(), 0)


def check(found: Inventory, deep: bool, read: MaskReader) -> None:
    """Move faulty pairs from the pairs to the faults, and set in the others how masks are read.

    Sizes are read from the headers of all files. A few masks are opened; if one of them has wrong
    values, all are, so that each faulty one is reported. Other faults that headers don't show are
    reported when files are decoded.

    Args:
        found: the split to check.
        deep: open every file.
        read: how masks are read.
    """
    pairs = [pair if pair.is_drawn else replace(pair, read=read) for pair in found.pairs]
    with ThreadPoolExecutor() as pool:
        checked = list(pool.map(lambda pair: _check_pair(pair, deep), pairs))
        found.pairs = [result for result in checked if isinstance(result, Pair)]
        faults = [result for result in checked if isinstance(result, UserError)]
        if not deep and any(map(_wrong_values, _sample(found.pairs))):
            faults += filter(None, pool.map(_wrong_values, found.pairs))
    if pairs and len(faults) == len(pairs):
        of_files = not any(pair.is_drawn for pair in pairs)
        found.swapped = of_files and all(_is_mask(pair.image, read) for pair in _sample(pairs))
    found.faults += faults


def _sample(pairs: list[Pair]) -> list[Pair]:
    """A few pairs: values are wrong in many masks of a data set or in none."""
    return pairs[:: max(1, len(pairs) // 8)]


def _wrong_values(pair: Pair) -> UserError | None:
    """The fault of a mask file that can be decoded, if it has one."""
    if pair.is_drawn:  # whose values are those of its set's rule
        return None
    try:
        pair.load_mask()
    except UserError as error:
        with suppress(UserError):
            open_image(pair.mask)
            return error
    return None


def _is_mask(path: Path, read: MaskReader) -> bool:
    try:
        read(path)
    except UserError:
        return False
    return True


def _check_pair(pair: Pair, deep: bool) -> Pair | UserError:
    try:
        width, height = oriented_size(pair.image)
        mask_width, mask_height = pair.mask_size()
        if isinstance(pair.read, Drawing):
            pair = replace(pair, read=replace(pair.read, size=(mask_width, mask_height)))
        if deep:
            open_image(pair.image)
            pair.load_mask()
    except UserError as error:
        return error
    if (mask_width, mask_height) == (width, height):
        return pair
    if abs(mask_width * height / (mask_height * width) - 1) <= _ASPECT_TOLERANCE:
        return replace(pair, rescaled=True)
    sizes = f"is {mask_width}×{mask_height}, its image {width}×{height}"
    if not pair.is_drawn:
        return UserError(f"{pair.mask}: {sizes}: the aspect ratios differ")
    sizes = f"{width}×{height} when upright, {mask_width}×{mask_height} in {pair.mask}"
    return UserError(f"{pair.image}: is {sizes}: the aspect ratios differ")


def list_faults(
    faults: Sequence[UserError],
    describe: Callable[[UserError], str],
    shown: int | None = _FAULTS_SHOWN,
) -> list[str]:
    """Lines of faults by kind; a fault that more than three files share is listed once.

    Args:
        faults: their texts begin with a file.
        describe: the text of one.
        shown: at most this many of a kind, or files of one fault; None for all.
    """
    kinds: dict[str, list[tuple[str, UserError]]] = {}
    for fault in faults:
        path, _, reason = fault.args[0].partition(": ")
        kind = re.sub(r"[\d, ]+", " ", reason.replace(Path(path).stem, ""))
        kinds.setdefault(kind, []).append((reason, fault))
    lines = []
    for alike in kinds.values():
        counts = Counter(reason for reason, _ in alike)
        if len(counts) <= _ALIKE:
            for once in (reason for reason, count in counts.items() if count > _ALIKE):
                same = [fault for reason, fault in alike if reason == once]
                alike = [(reason, fault) for reason, fault in alike if reason != once]
                lines += _list_alike(same, describe(same[0]), shown)
        lines += [f"  {describe(fault)}" for _, fault in alike[:shown]]
        if more := len(alike[shown:]) if shown else 0:
            lines.append(f"  … and {more} more like these")
    return lines


def _list_alike(faults: Sequence[UserError], text: str, shown: int | None) -> list[str]:
    files = [Path(fault.args[0].partition(": ")[0]) for fault in faults]
    folders = {file.parent for file in files}
    where = f"in {files[0].parent}: " if len(folders) == 1 and files[0].parent != Path() else ""
    names = [file.name if where else str(file) for file in files]
    listed = first_ten(names) if shown else ", ".join(names)
    return [f"  {len(files)} files: {text.removeprefix(f'{files[0]}: ')}", f"    {where}{listed}"]


class InvalidDataError(UserError):
    """Every kind of fault in a data set, with the first ten files that have it.

    Args:
        where: the data set's folder.
        results: its splits, checked.
    """

    def __init__(self, where: str, results: Sequence[Inventory] = ()) -> None:
        super().__init__(where)
        self.results = results

    def describe(self, rename: Callable[[str], str] = str) -> str:
        """A heading, the faults and what to do, on separate lines."""
        faults = {fault.args[0]: fault for found in self.results for fault in found.faults}
        lines = [f"{self.args[0]}: {counted(len(faults), 'fault')} in the data:"]
        if any(found.swapped for found in self.results):
            lines.append("  are the two folders swapped? The images can be read as masks")
        lines += list_faults([*faults.values()], lambda fault: fault.describe(rename))
        empty = [found.split for found in self.results if not found.pairs]
        more = f", or pass {rename('skip_invalid')} to leave them out"
        if empty:
            more = f": without them, the {empty[0]} split is empty"
        return "\n".join([*lines, f"Fix these files{more}"])
