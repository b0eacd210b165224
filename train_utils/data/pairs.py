"""Pairs of picture and mask: their files, matched by name and checked by their headers."""

from collections import Counter
from collections.abc import Callable, Iterable, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from src.errors import UserError
from src.pictures.images import SUFFIXES, list_images, open_image, oriented_size

MaskReader = Callable[[Path], np.ndarray]  # a file to H×W uint8
_ASPECT_TOLERANCE = 0.02  # whole pixels put a scaled mask at most this far off its picture's
_LOOKED_AT = 16  # pictures and namings that are tried where no mask has a picture's own name


@dataclass(frozen=True)
class Pair:
    """A picture and its mask; ``rescaled`` when the mask has another size than the picture."""

    image: Path
    mask: Path
    rescaled: bool = False

    @property
    def name(self) -> str:
        """The picture's stem; the mask's is that or a longer one."""
        return self.image.stem


@dataclass
class Inventory:
    """What :func:`find_splits` found: the sound pairs, what is wrong, and what deserves a word."""

    split: str
    pairs: list[Pair] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_files(images: Path, masks: Path, found: Inventory) -> tuple[list[Path], list[Path]]:
    """The pictures of one folder and the masks of another; in one for both, masks are those called
    ``NAME_mask`` or the like beside a NAME, else PNG files. What is missing is a fault.
    """
    if images.resolve() != masks.resolve():
        return _list(images, found), _list(masks, found)
    files = _list(images, found)
    stems = {path.stem for path in files}
    (before, after), count = _longer(stems, stems)  # enough if half of the other files have a mask
    named = {before + stem + after for stem in stems} if 2 * count >= len(stems) - count else set()
    is_mask = [p.stem in named if named else p.suffix.lower() == ".png" for p in files]
    annotations = [path for path, mask in zip(files, is_mask, strict=True) if mask]
    pictures = [path for path, mask in zip(files, is_mask, strict=True) if not mask]
    if files and not (pictures and annotations):
        found.faults.append(
            f"{images}: in one folder for both, masks must be called NAME_mask or the like, or be "
            "the only PNG files; put them into a folder of their own"
        )
    return pictures, annotations


def _list(folder: Path, found: Inventory) -> list[Path]:
    if not folder.is_dir():
        found.faults.append(f"{folder}: no such folder")
        return []
    files = list_images(folder)
    if not files:
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
        more = f"; the folders in it, such as {inside[0]}, are not looked into" if inside else ""
        found.faults.append(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))}){more}")
    return files


def match(images: list[Path], masks: list[Path], wanted: set[str], found: Inventory) -> None:
    """Add the wanted pairs, matched by name; a picture without a mask is a fault.

    A mask has its picture's stem; or, where few have that, a longer one, made alike for all, such
    as ``NAME_mask``.
    """
    if not masks:  # which is a fault already
        return
    by_stem = {path.stem: path for path in masks}
    stems = {path.stem for path in images}
    before, after = naming(stems, by_stem.keys())
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
        else:
            found.faults.append(f"{path}: no mask {mask}.* in {masks[0].parent}")
    found.faults = list(dict.fromkeys(found.faults))
    if before or after:
        found.notes.append(f"the masks are called {before}NAME{after}")
    unused = by_stem.keys() - {before + stem + after for stem in stems}
    if unused:
        found.notes.append(f"{len(unused)} masks have no picture, such as {min(unused)}: not used")


def naming(pictures: Set[str], masks: Set[str]) -> tuple[str, str]:
    """What masks' names have before and behind their picture's: nothing, if that gives half of the
    pictures a mask, or if nothing else does.
    """
    if 2 * len(pictures & masks) >= len(pictures):
        return "", ""
    best, count = _longer(pictures, masks)
    return best if 2 * count >= len(pictures) else ("", "")


def _longer(pictures: Set[str], masks: Set[str]) -> tuple[tuple[str, str], int]:
    """What to put before and behind pictures' names to get the most names of masks, and how many;
    nothing is not tried.
    """
    ordered = sorted(pictures, key=lambda stem: (len(stem), stem))
    parts = (  # of names of all lengths: short ones are in others by chance, long ones are masks
        mask.partition(stem)[::2]
        for stem in ordered[:: max(1, len(ordered) // _LOOKED_AT)]
        for mask in masks
        if stem in mask and stem != mask
    )
    some = ordered[:: max(1, len(ordered) // 500)]

    def count(naming: tuple[str, str], stems: Iterable[str]) -> int:
        return sum(naming[0] + stem + naming[1] in masks for stem in stems)

    tried = [naming for naming, _ in Counter(parts).most_common(_LOOKED_AT)]
    best = max(tried, key=lambda naming: count(naming, some), default=("", ""))
    return best, count(best, pictures) if tried else 0


def check(found: Inventory, deep: bool, read: MaskReader) -> None:
    """Leave faulty pairs out, and name their faults; ``deep`` decodes every file."""
    pairs = found.pairs
    with ThreadPoolExecutor() as pool:
        checked = list(pool.map(lambda pair: _check_pair(pair, deep, read), pairs))
        found.pairs = [result for result in checked if isinstance(result, Pair)]
        faults = [result for result in checked if isinstance(result, str)]
        # Opening all takes long. Their values go wrong in many or in none, so a few tell.
        few = [] if deep else found.pairs[:: max(1, len(found.pairs) // 8)]
        if any(_fault(pair.mask, read) for pair in few):
            faults += filter(None, pool.map(lambda pair: _fault(pair.mask, read), found.pairs))
    if pairs and len(faults) == len(pairs) and not _fault(pairs[0].image, read):
        faults.insert(0, "all pictures can be read as masks: are the two folders swapped?")
    found.faults += faults


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
