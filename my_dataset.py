"""Pairs of picture and mask on disk: the DUTS layout, any two folders, lists of stems.

What a mask may be: {0,1}, {0,255}, grey, palette, or RGBA; ``train_utils/masks.py`` has the rules.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.errors import UserError
from src.images import SUFFIXES, list_images, open_image, oriented_size, to_rgb, to_tensor
from train_utils.masks import read_mask
from transforms import EvalPreset, Growing, TrainPreset, paste

_LISTED = ("train", "val", "test")  # NAME.txt
SPLITS = (*_LISTED, "all")
_DUTS = {"train": "DUTS-TR", "test": "DUTS-TE"}
MaskReader = Callable[[Path], np.ndarray]  # a file to H×W uint8
_ASPECT_TOLERANCE = 0.02  # whole pixels put a scaled mask at most this far off its picture's


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


def find_pairs(
    data_path: str | Path | None = None,
    split: str | None = None,
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    skip_invalid: bool = False,
    read: MaskReader = read_mask,
) -> Inventory:
    """One split, see :func:`find_splits`; None: DUTS-TE of the DUTS layout, else all pairs."""
    if split is None:
        has_test = data_path and (Path(data_path) / _DUTS["test"]).is_dir()
        split = "test" if has_test else "all"
    return find_splits(data_path, (split,), image_dir, mask_dir, skip_invalid, read)[0]


def find_splits(
    data_path: str | Path | None = None,
    splits: Sequence[str] = ("train", "test"),
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    skip_invalid: bool = False,
    read: MaskReader = read_mask,
) -> list[Inventory]:
    """Find and check splits of a data set; only headers are read, so 10,000 pairs take seconds.

    Args:
        data_path: the DUTS layout (``DUTS-TR/DUTS-TR-Image`` …), or ``images`` + ``masks`` with
            optional ``train.txt`` / ``val.txt`` / ``test.txt`` (stems, one a line). Where no list
            tells the splits apart, one picture in ten, chosen by its name, is ``test``.
        splits: of ``train``, ``val``, ``test`` and ``all``.
        image_dir: with ``mask_dir``, in place of ``data_path``: any two folders.
        skip_invalid: leave faulty pairs out and note how many; also decodes every file once, to
            find those that headers don't give away.
        read: of a mask file, to {0, 1} or class indices.

    Raises:
        UserError: no data set is there, or something in it is faulty: all of it is named.
    """
    results = [_find_split(data_path, s, image_dir, mask_dir) for s in splits]
    for found in results:
        _check(found, skip_invalid, read)
    where = data_path or image_dir
    faults = list(dict.fromkeys(fault for found in results for fault in found.faults))
    some_left = all(found.pairs for found in results)
    if faults and not (skip_invalid and some_left):
        raise UserError(_report(where, faults, some_left))
    for found in results:
        if not found.pairs:
            raise UserError(
                f"{where}: no pictures for the {found.split} split; list some names in "
                f"{found.split}.txt, or add pictures"
            )
        if found.faults:
            named = "".join(f"\n  {fault}" for fault in found.faults)
            found.notes.append(f"{len(found.faults)} faults, left out:{named}")
        rescaled = sum(pair.rescaled for pair in found.pairs)
        if rescaled:
            found.notes.append(
                f"{rescaled} masks of {len(found.pairs)} have another size than their picture, of "
                "the same aspect: scaled to it for training, scored at their own"
            )
    return results


def has_list(data_path: str | Path | None, split: str) -> bool:
    """Whether ``split``.txt tells the pictures of a split in ``data_path``."""
    return bool(data_path) and (Path(data_path) / f"{split}.txt").is_file()


def _find_split(
    data_path: str | Path | None,
    split: str,
    image_dir: str | Path | None,
    mask_dir: str | Path | None,
) -> Inventory:
    found = Inventory(split)
    folders, lists = _layout(data_path, split, image_dir, mask_dir)
    for images, masks in folders:
        files = {folder: _list(folder, found) for folder in (images, masks)}
        stems = {path.stem for path in files[images]}
        wanted = stems if lists is None else _select(lists, split, stems, found)
        _match(files[images], files[masks], wanted, found)
    return found


def _layout(
    data_path: str | Path | None,
    split: str,
    image_dir: str | Path | None,
    mask_dir: str | Path | None,
) -> tuple[list[tuple[Path, Path]], Path | None]:
    """The folders to match, and the folder whose lists choose the split (None: all is wanted)."""
    if image_dir or mask_dir:
        if not (image_dir and mask_dir) or data_path:
            raise UserError("give --image-dir and --mask-dir together, without --data-path")
        return [(Path(image_dir), Path(mask_dir))], Path(image_dir)
    if not data_path:
        raise UserError("no data: give --data-path DIR, or --image-dir DIR and --mask-dir DIR")
    root = Path(data_path)
    if not root.is_dir():
        raise UserError(f"--data-path {root}: no such folder")
    parts = {s: root / name for s, name in _DUTS.items() if (root / name).is_dir()}
    if parts:
        if split == "val":
            raise UserError(f"--data-path {root}: the DUTS layout has no val split")
        alone = list(parts) == ["train"]  # no DUTS-TE: some of DUTS-TR is held out
        wanted = list(parts) if split == "all" else ["train" if alone else split]
        if wanted == ["train"] and "train" not in parts:
            raise UserError(f"--data-path {root}: holds no {_DUTS['train']} to train on")
        folders = [(parts[s] / f"{_DUTS[s]}-Image", parts[s] / f"{_DUTS[s]}-Mask") for s in wanted]
        return folders, root if alone else None
    if (root / "images").is_dir() or (root / "masks").is_dir():
        return [(root / "images", root / "masks")], root
    raise UserError(
        f"--data-path {root}: found neither DUTS-TR/DUTS-TR-Image + DUTS-TR/DUTS-TR-Mask nor "
        "images/ + masks/ in it; name your folders with --image-dir and --mask-dir"
    )


def _list(folder: Path, found: Inventory) -> list[Path]:
    if not folder.is_dir():
        found.faults.append(f"{folder}: no such folder")
        return []
    files = list_images(folder)
    if not files:
        found.faults.append(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return files


def _select(lists: Path, split: str, stems: set[str], found: Inventory) -> set[str]:
    """The stems of one split, by the lists in ``lists`` or, without any, by name."""
    named = {s: _read_list(lists / f"{s}.txt", found) for s in _LISTED}
    named = {s: names for s, names in named.items() if names is not None}
    for one, other in combinations(named, 2):
        both = sorted(named[one] & named[other])
        if both:
            found.faults.append(f"{lists}: {both[0]} is in {one}.txt and in {other}.txt")
    if split == "all":
        return stems
    if split in named:
        found.faults += [
            f"{lists / split}.txt: lists {stem}, which has no picture"
            for stem in sorted(named[split] - stems)
        ]
        return named[split] & stems
    if split == "val":
        raise UserError(f"{lists}: no val.txt in it, so no --split val")
    if named:
        return stems.difference(*named.values())
    found.notes.append("no train.txt or test.txt: one picture in ten is held out to test")
    held_out = {stem for stem in stems if _hash(stem) % 10 == 0}
    held_out = held_out or set(sorted(stems, key=_hash)[:1])
    return held_out if split == "test" else stems - held_out


def _hash(stem: str) -> int:
    """The same on every machine, so that the same pictures stay held out as others are added."""
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:8], "big")


def _read_list(path: Path, found: Inventory) -> set[str] | None:
    if not path.is_file():
        return None
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found.faults.append(f"{path}: not a readable list of names ({error})")
        return set()
    names = {Path(line.strip()).name for line in lines if line.strip()}
    return {Path(n).stem if Path(n).suffix.lower() in SUFFIXES else n for n in names}


def _match(images: list[Path], masks: list[Path], wanted: set[str], found: Inventory) -> None:
    """Add the wanted pairs, matched by stem; a picture without a mask is a fault."""
    by_stem = {path.stem: path for path in masks}
    counts = [Counter(path.stem for path in files) for files in (images, masks)]
    doubled = {stem for count in counts for stem, n in count.items() if n > 1} & wanted
    where = images[0].parent.parent if images else ""
    found.faults += [
        f"{stem}: two pictures or two masks of this name in {where}" for stem in sorted(doubled)
    ]
    for path in images:
        if path.stem not in wanted or path.stem in doubled:
            continue
        if path.stem in by_stem:
            found.pairs.append(Pair(path, by_stem[path.stem]))
        elif masks:
            found.faults.append(f"{path}: no mask {path.stem}.* in {masks[0].parent}")
    unused = by_stem.keys() - {path.stem for path in images}
    if unused:
        found.notes.append(f"{len(unused)} masks have no picture, such as {min(unused)}: not used")


def _check(found: Inventory, deep: bool, read: MaskReader) -> None:
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


def _report(where: str | Path | None, faults: Sequence[str], some_left: bool) -> str:
    count = f"{len(faults)} fault{'s' * (len(faults) > 1)} in the data:"
    advice = "mend them, or leave them out by --skip-invalid" if some_left else "mend them"
    return "\n".join([f"{where}: {count}", *(f"  {fault}" for fault in faults), advice])


class SegmentationDataset(Dataset):
    """Picture, mask and position of each pair.

    Args:
        pairs: of :func:`find_pairs`.
        transform: a preset of ``transforms.py``.
        seed: of the augmentation.
        read: of a mask file, to {0, 1} or class indices.

    An item is asked for by ``index``, or by ``(epoch, index)`` as the training sampler does: its
    augmentation depends on (seed, epoch, index) alone, so a run repeats whatever the number of
    workers. It gives picture (3×H×W uint8), mask (1×H×W uint8 {0, 1}) and index.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        transform: TrainPreset | EvalPreset | Growing,
        seed: int = 0,
        read: MaskReader = read_mask,
    ) -> None:
        self.pairs = list(pairs)
        self.read = read
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture, mask = load_pair(self.pairs[index], self.read)
        # Not torch.manual_seed: it seeds GPUs too, and formats a stack trace for each one to come.
        before = torch.random.get_rng_state()
        try:
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            preset = self.transform.at(epoch)
            picture, mask = preset(picture, mask)
            if getattr(preset, "paste", 0) and torch.rand(()) < preset.paste:
                other = self.pairs[int(torch.randint(len(self), ()))]
                picture, mask = paste(*preset(*load_pair(other, self.read)), picture, mask)
            return picture, mask, index
        finally:
            torch.random.set_rng_state(before)


def load_pair(pair: Pair, read: MaskReader = read_mask) -> tuple[Tensor, Tensor]:
    """Picture 3×H×W uint8 and mask 1×h×w uint8, of the picture's size or its aspect."""
    return to_tensor(to_rgb(open_image(pair.image))), torch.from_numpy(read(pair.mask))[None]


def _mix(*numbers: int) -> int:
    """One 63-bit seed of several numbers, no two alike by plain arithmetic."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
