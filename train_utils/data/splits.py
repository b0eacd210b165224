"""Splits of a data set on disk: the DUTS layout, any two folders, lists of stems.

What a mask may be: {0,1}, {0,255}, grey, palette, or RGBA; ``masks.py`` has the rules.
"""

import hashlib
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from src.errors import UserError
from src.pictures.images import SUFFIXES

from .masks import read_mask
from .pairs import Inventory, MaskReader, check, list_files, match

_LISTED = ("train", "val", "test")  # NAME.txt
SPLITS = (*_LISTED, "all")
_SHOWN = 10  # faults of a kind
_DUTS = {"train": "DUTS-TR", "test": "DUTS-TE"}


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
        check(found, skip_invalid, read)
    where = data_path or image_dir
    faults = list(dict.fromkeys(fault for found in results for fault in found.faults))
    some_left = all(found.pairs for found in results)
    if faults and not (skip_invalid and some_left):
        raise UserError(_report(where, faults, some_left))
    for found in results:
        if not found.pairs:
            raise UserError(
                f"{where}: no pictures for the {found.split} split; list some names in "
                f"{found.split}.txt, or add pictures{_other_split(where, found.split)}"
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


def _other_split(where: str | Path | None, split: str) -> str:
    return "; val.txt holds some: --split val" if split == "test" and has_list(where, "val") else ""


def _find_split(
    data_path: str | Path | None,
    split: str,
    image_dir: str | Path | None,
    mask_dir: str | Path | None,
) -> Inventory:
    found = Inventory(split)
    folders, lists = _layout(data_path, split, image_dir, mask_dir)
    for images, masks in folders:
        pictures, annotations = list_files(images, masks, found)
        stems = {path.stem for path in pictures}
        wanted = stems if lists is None else _select(lists, split, stems, found)
        match(pictures, annotations, wanted, found)
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
            raise UserError(
                "give --image-dir and --mask-dir together, without --data-path (one folder for "
                "both is named twice)"
            )
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
    own = [_child(root, name) for name in ("images", "masks")]
    if any(folder.is_dir() for folder in own):
        return [tuple(own)], root
    raise UserError(
        f"--data-path {root}: found neither DUTS-TR/DUTS-TR-Image + DUTS-TR/DUTS-TR-Mask nor "
        "images/ + masks/ in it; name your folders with --image-dir and --mask-dir (one for both, "
        "if pictures and masks lie in one)"
    )


def _child(root: Path, name: str) -> Path:
    """A folder in another one, whatever the case of its letters."""
    same = (path for path in sorted(root.iterdir()) if path.name.lower() == name and path.is_dir())
    return next(same, root / name)


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


def _report(where: str | Path | None, faults: Sequence[str], some_left: bool) -> str:
    """Every kind of fault with the files that have it; of more than ten, the first."""
    count = f"{len(faults)} fault{'s' * (len(faults) > 1)} in the data:"
    kinds: dict[str, list[str]] = {}
    for fault in faults:
        path, _, reason = fault.partition(": ")
        kind = re.sub(r"[\d, ]+", " ", reason.replace(Path(path).stem, ""))
        kinds.setdefault(kind, []).append(fault)
    lines = []
    for alike in kinds.values():
        lines += [f"  {fault}" for fault in alike[:_SHOWN]]
        if len(alike) > _SHOWN:
            lines.append(f"  … and {len(alike) - _SHOWN} more like these")
    advice = "mend them, or leave them out by --skip-invalid" if some_left else "mend them"
    return "\n".join([f"{where}: {count}", *lines, advice])
