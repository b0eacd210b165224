"""Pairs of picture and mask on disk: the DUTS layout, any two folders, lists of stems.

What a mask may be (see :func:`read_mask`): {0,1}, {0,255}, grey, palette, or RGBA.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from src.errors import UserError
from src.images import SUFFIXES, open_image, oriented_size, to_rgb, to_tensor
from transforms import EvalPreset, TrainPreset

SPLITS = ("train", "test", "all")
_DUTS = {"train": "DUTS-TR", "test": "DUTS-TE"}
_ASPECT_TOLERANCE = (
    0.02  # a mask scaled to whole pixels is at most this far off its picture's aspect
)


@dataclass(frozen=True)
class Pair:
    """A picture and its mask; ``rescale`` when the mask must be scaled to the picture's size."""

    image: Path
    mask: Path
    rescale: bool = False

    @property
    def name(self) -> str:
        """The stem that picture and mask share."""
        return self.image.stem


@dataclass
class Inventory:
    """What :func:`find_pairs` found: the sound pairs, what is wrong, and what deserves a word."""

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
) -> Inventory:
    """Find and check one split of a data set; only headers are read, so 10,000 pairs take seconds.

    Args:
        data_path: the DUTS layout (``DUTS-TR/DUTS-TR-Image`` …), or ``images`` + ``masks`` with
            optional ``train.txt`` / ``test.txt`` (stems, one a line). Where no list tells the
            splits apart, one picture in ten, chosen by its name, is ``test``.
        split: ``train``, ``test`` or ``all``; None is what there is to score: DUTS-TE in the DUTS
            layout, all pairs of other folders.
        image_dir: with ``mask_dir``, in place of ``data_path``: any two folders.
        skip_invalid: leave faulty pairs out and note how many; also decodes every file once, to
            find those that headers don't give away.

    Raises:
        UserError: the folders are missing or empty, or a pair is faulty (all are named).
    """
    if split is None:
        split = "test" if data_path and (Path(data_path) / _DUTS["test"]).is_dir() else "all"
    folders, lists = _layout(data_path, split, image_dir, mask_dir)
    found = Inventory(split)
    for images, masks in folders:
        _match(images, masks, found)
    if lists is not None:
        _select(lists, split, found)
    _check(found, deep=skip_invalid)
    where = data_path or image_dir
    if found.faults and not skip_invalid:
        raise UserError(_report(where, found.faults))
    if not found.pairs:
        raise UserError(_report(where, found.faults) if found.faults else f"{where}: no pairs left")
    if found.faults:
        found.notes.append(f"left out {len(found.faults)} faulty pairs, first: {found.faults[0]}")
    rescaled = sum(pair.rescale for pair in found.pairs)
    if rescaled:
        found.notes.append(f"{rescaled} masks have another size than their picture: scaled to it")
    return found


def _layout(
    data_path: str | Path | None,
    split: str,
    image_dir: str | Path | None,
    mask_dir: str | Path | None,
) -> tuple[list[tuple[Path, Path]], Path | None]:
    """The folders to match, and the folder whose lists choose the split (None: all of them)."""
    if split not in SPLITS:
        raise UserError(f"--split {split}: choose one of {', '.join(SPLITS)}")
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
        wanted = parts.values() if split == "all" or len(parts) == 1 else [parts[split]]
        folders = [(part / f"{part.name}-Image", part / f"{part.name}-Mask") for part in wanted]
        return folders, root if len(parts) == 1 else None
    if (root / "images").is_dir() or (root / "masks").is_dir():
        return [(root / "images", root / "masks")], root
    raise UserError(
        f"--data-path {root}: found neither DUTS-TR/DUTS-TR-Image + DUTS-TR/DUTS-TR-Mask nor "
        "images/ + masks/ in it; name your folders with --image-dir and --mask-dir"
    )


def _match(images: Path, masks: Path, found: Inventory) -> None:
    """Add the pairs of two folders, matched by stem; what has no partner is a fault."""
    files = {folder: _list_images(folder) for folder in (images, masks)}
    by_stem = {path.stem: path for path in files[masks]}
    doubled = [stem for stem, n in Counter(p.stem for p in files[images]).items() if n > 1]
    doubled += [stem for stem, n in Counter(p.stem for p in files[masks]).items() if n > 1]
    found.faults += [
        f"{stem}: two files share this stem in {images} or {masks}" for stem in doubled
    ]
    for path in files[images]:
        if path.stem in by_stem:
            if path.stem not in doubled:
                found.pairs.append(Pair(path, by_stem[path.stem]))
        else:
            found.faults.append(f"{path}: no mask named {path.stem}.* in {masks}")


def _list_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return files


def _select(lists: Path, split: str, found: Inventory) -> None:
    """Keep the pairs of one split, by the lists in ``lists`` or, without any, by name."""
    named = {s: _read_list(lists / f"{s}.txt") for s in _DUTS}
    if split == "all":
        if named["train"]:
            found.notes.append(
                f"all {len(found.pairs)} pictures, those of train.txt too; --split test takes only "
                "the ones held out"
            )
        return
    wanted, other = named[split], named["test" if split == "train" else "train"]
    stems = {pair.name for pair in found.pairs}
    if wanted is not None:
        faulty = " ".join(found.faults)
        found.faults += [
            f"{lists / split}.txt: lists {stem}, which has no picture"
            for stem in sorted(wanted - stems)
            if stem not in faulty
        ]
    elif other is not None:
        wanted = stems - other
    else:
        wanted = {stem for stem in stems if _held_out(stem) == (split == "test")}
        found.notes.append("no train.txt or test.txt: one picture in ten is held out as test")
    found.pairs = [pair for pair in found.pairs if pair.name in wanted]


def _held_out(stem: str) -> bool:
    """One name in ten; the same ones on every machine, however many pictures are added later."""
    return hashlib.sha256(stem.encode()).digest()[0] % 10 == 0


def _read_list(path: Path) -> set[str] | None:
    if not path.is_file():
        return None
    return {
        Path(line.strip()).name for line in path.read_text("utf-8").splitlines() if line.strip()
    }


def _check(found: Inventory, deep: bool) -> None:
    with ThreadPoolExecutor() as pool:
        checked = list(pool.map(lambda pair: _check_pair(pair, deep), found.pairs))
    found.faults += [result for result in checked if isinstance(result, str)]
    found.pairs = [result for result in checked if isinstance(result, Pair)]
    # The values of masks go wrong all together or not at all: a few tell before training starts.
    for pair in found.pairs[:: max(1, len(found.pairs) // 8)]:
        try:
            read_mask(pair.mask)
        except UserError as error:
            found.faults.append(str(error))


def _check_pair(pair: Pair, deep: bool) -> Pair | str:
    try:
        if deep:
            open_image(pair.image)
            read_mask(pair.mask)
        width, height = oriented_size(pair.image)
        size = oriented_size(pair.mask)
    except UserError as error:
        return str(error)
    if size == (width, height):
        return pair
    if abs(size[0] * height / (size[1] * width) - 1) > _ASPECT_TOLERANCE:
        return f"{pair.mask}: is {size[0]}×{size[1]}, its picture {width}×{height}: another aspect"
    return Pair(pair.image, pair.mask, rescale=True)


def _report(where: str | Path | None, faults: Sequence[str]) -> str:
    shown = "\n".join(f"  {fault}" for fault in faults[:20])
    more = f"\n  … and {len(faults) - 20} more" if len(faults) > 20 else ""
    advice = "mend or remove them, or go on without them by --skip-invalid"
    return f"{where}: {len(faults)} faults in the data:\n{shown}{more}\n{advice}"


def read_mask(path: str | Path) -> np.ndarray:
    """A mask as H×W uint8 {0, 1}, 1 for the object. The rules, by what the file holds:

    - RGBA or grey with alpha: the alpha, if it says anything; else the colours, as below.
    - A palette: its colours; grey ones by their brightness, others object unless black.
    - Grey, or RGB with equal channels: object where > 127 of 255. If the brightest value is 1, it
      is a 0/1 mask and object where 1. 16 bits: the same on the whole range.

    Raises:
        UserError: unreadable, coloured, or nowhere brighter than 127 though not a 0/1 mask (a
            mask of class indices, say): it would silently become an empty mask.
    """
    image = open_image(path)
    if image.mode in ("LA", "PA", "RGBA"):
        alpha = np.asarray(image.getchannel("A"))
        if alpha.min() < 255:
            return _binary(alpha, path)
    if image.mode == "P":
        colours = np.asarray(image.convert("RGB"))
        grey = np.ptp(colours, axis=-1).max() <= 8
        return _binary(colours[..., 0], path) if grey else colours.any(-1).astype(np.uint8)
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I") or image.mode == "F":
        return _binary(np.asarray(image.getchannel(0)), path)
    colours = np.asarray(image.convert("RGB"))
    if np.ptp(colours.astype(np.int16), axis=-1).max() > 32:  # JPEG shifts grey a little
        raise UserError(f"{path}: a coloured picture, not a mask; expected grey, 0 and 255")
    return _binary(colours[..., 1], path)


def _binary(values: np.ndarray, path: str | Path) -> np.ndarray:
    highest = float(values.max(initial=0))
    if values.dtype == bool or highest <= 1:
        return (values > 0.5).astype(np.uint8)
    full = 255 if highest <= 255 else 65535
    if highest <= full // 2:
        raise UserError(
            f"{path}: brightest value {highest:g}, so nothing in it is object; a mask must be "
            "0 and 1, or 0 and 255 (object where > 127)"
        )
    return (values > full // 2).astype(np.uint8)


class SegmentationDataset(Dataset):
    """Picture, mask and position of each pair.

    Args:
        pairs: of :func:`find_pairs`.
        transform: a preset of ``transforms.py``.
        seed: of the augmentation.

    An item is asked for by ``index``, or by ``(epoch, index)`` as the training sampler does: its
    augmentation depends on (seed, epoch, index) alone, so a run repeats whatever the number of
    workers. It gives picture (3×H×W uint8), mask (1×H×W uint8 {0, 1}) and index.
    """

    def __init__(
        self, pairs: Iterable[Pair], transform: TrainPreset | EvalPreset, seed: int = 0
    ) -> None:
        self.pairs = list(pairs)
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture, mask = load_pair(self.pairs[index])
        # Not torch.manual_seed: it seeds GPUs too, and formats a stack trace for each one to come.
        before = torch.random.get_rng_state()
        try:
            torch.default_generator.manual_seed(_mix(self.seed, epoch, index))
            return *self.transform(picture, mask), index
        finally:
            torch.random.set_rng_state(before)


def load_pair(pair: Pair) -> tuple[Tensor, Tensor]:
    """Picture 3×H×W uint8 and mask 1×H×W uint8 {0, 1}, of the same size."""
    image = to_rgb(open_image(pair.image))
    mask = read_mask(pair.mask)
    if pair.rescale:
        scaled = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
        mask = np.asarray(scaled)
    return to_tensor(image), torch.from_numpy(mask)[None]


def _mix(*numbers: int) -> int:
    """One 63-bit seed of several numbers, no two alike by plain arithmetic."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
