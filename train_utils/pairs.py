"""Pairs of picture and mask: their files, matched by name and checked by their headers."""

from collections import Counter
from collections.abc import Callable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.images import SUFFIXES, list_images, open_image, oriented_size

MaskReader = Callable[[Path], np.ndarray]  # a file to H×W uint8
_ASPECT_TOLERANCE = 0.02  # whole pixels put a scaled mask at most this far off its picture's
_LOOKED_AT = 8  # pictures and namings that are tried where no mask has a picture's own name


@dataclass(frozen=True)
class Pair:
    """A picture and its mask; ``rescaled`` when the mask has another size than the picture."""

    image: Path
    mask: Path
    rescaled: bool = False

    @property
    def name(self) -> str:
        """The stem that picture and mask share."""
        return self.image.stem


@dataclass
class Inventory:
    """What :func:`find_splits` found: the sound pairs, what is wrong, and what deserves a word."""

    split: str
    pairs: list[Pair] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_files(images: Path, masks: Path, found: Inventory) -> tuple[list[Path], list[Path]]:
    """The pictures of one folder and the masks of another; in one for both, PNG files are masks and
    the others pictures. What is missing is a fault.
    """
    if images.resolve() != masks.resolve():
        return _list(images, found), _list(masks, found)
    files = _list(images, found)
    annotations = [path for path in files if path.suffix.lower() == ".png"]
    pictures = [path for path in files if path.suffix.lower() != ".png"]
    if files and not (pictures and annotations):
        found.faults.append(
            f"{images}: in one folder for both, PNG files are the masks and the others the "
            f"pictures; it holds no {'masks' if pictures else 'pictures'}"
        )
    return pictures, annotations


def _list(folder: Path, found: Inventory) -> list[Path]:
    if not folder.is_dir():
        found.faults.append(f"{folder}: no such folder")
        return []
    files = list_images(folder)
    if not files:
        found.faults.append(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return files


def match(images: list[Path], masks: list[Path], wanted: set[str], found: Inventory) -> None:
    """Add the wanted pairs, matched by name; a picture without a mask is a fault.

    A mask has its picture's stem; or, where few have that, a longer one, made alike for all, such
    as ``NAME_mask``.
    """
    by_stem = {path.stem: path for path in masks}
    stems = {path.stem for path in images}
    before, after = _naming(stems, by_stem.keys())
    counts = [Counter(path.stem for path in files) for files in (images, masks)]
    doubled = {stem for count in counts for stem, n in count.items() if n > 1}
    where = images[0].parent.parent if images else ""
    for path in images:
        if path.stem not in wanted:
            continue
        mask = before + path.stem + after
        if {path.stem, mask} & doubled:
            found.faults.append(f"{path.stem}: two pictures or two masks of this name in {where}")
        elif mask in by_stem:
            found.pairs.append(Pair(path, by_stem[mask]))
        elif masks:
            found.faults.append(f"{path}: no mask {mask}.* in {masks[0].parent}")
    found.faults = list(dict.fromkeys(found.faults))
    if before or after:
        found.notes.append(f"the masks are called {before}NAME{after}")
    unused = by_stem.keys() - {before + stem + after for stem in stems}
    if unused:
        found.notes.append(f"{len(unused)} masks have no picture, such as {min(unused)}: not used")


def _naming(pictures: set[str], masks: Set[str]) -> tuple[str, str]:
    """What masks' names have before and behind their picture's: nothing, if that gives half of the
    pictures a mask, or if nothing else does.
    """
    if 2 * len(pictures & masks) >= len(pictures):
        return "", ""
    parts = (  # of long names, which few others hold by chance
        mask.partition(stem)[::2]
        for stem in sorted(pictures, key=len, reverse=True)[:_LOOKED_AT]
        for mask in masks
        if stem in mask
    )
    tried = [naming for naming, _ in Counter(parts).most_common(_LOOKED_AT)]
    fits = {(b, a): sum(b + stem + a in masks for stem in pictures) for b, a in tried}
    best = max(fits, key=fits.get, default=("", ""))
    return best if 2 * fits.get(best, 0) >= len(pictures) else ("", "")


def check(found: Inventory, deep: bool, read: MaskReader) -> None:
    with ThreadPoolExecutor() as pool:
        checked = list(pool.map(lambda pair: _check_pair(pair, deep, read), found.pairs))
    found.faults += [result for result in checked if isinstance(result, str)]
    found.pairs = [result for result in checked if isinstance(result, Pair)]
    if deep or not found.pairs:
        return
    # Opening all takes long. Their values go wrong in many or in none, so a few tell.
    if any(_fault(pair.mask, read) for pair in found.pairs[:: max(1, len(found.pairs) // 8)]):
        with ThreadPoolExecutor() as pool:
            faults = list(pool.map(lambda pair: _fault(pair.mask, read), found.pairs))
        found.faults += filter(None, faults)
        if all(faults) and not _fault(found.pairs[0].image, read):
            found.faults.append("the pictures read as masks: are the two folders swapped?")


def _fault(mask: Path, read: MaskReader) -> str | None:
    """What is wrong with a mask file."""
    try:
        read(mask)
    except UserError as error:
        return str(error)
    return None


def _check_pair(pair: Pair, deep: bool, read: MaskReader) -> Pair | str:
    try:
        if deep:
            open_image(pair.image)
            read(pair.mask)
        width, height = oriented_size(pair.image)
        size = oriented_size(pair.mask)
    except UserError as error:
        return str(error)
    if size == (width, height):
        return pair
    if abs(size[0] * height / (size[1] * width) - 1) > _ASPECT_TOLERANCE:
        return f"{pair.mask}: is {size[0]}×{size[1]}, its picture {width}×{height}: another aspect"
    return Pair(pair.image, pair.mask, rescaled=True)
