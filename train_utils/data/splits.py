"""The data sets on disk and their splits: which images are trained on, and which are held out.

Whatever way the splits are named, an image that is held out is never trained on.
"""

import hashlib
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from src.errors import UserError
from src.pictures.formats import IMAGE_SUFFIXES
from src.pictures.images import list_images

from .folders import DUTS, Folders, find_folders, list_files
from .masks import MaskReader, MaskRule, decide, read_mask
from .pairs import FileId, InvalidDataError, Inventory, check, file_id, first_ten, match

_LISTED = ("train", "val", "test")  # NAME.txt; an image in two lists belongs to the later split
SPLITS = (*_LISTED, "all")


def find_pairs(
    data_path: str | Path | None = None,
    split: str | None = None,
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    skip_invalid: bool = False,
    read: MaskReader = read_mask,
) -> Inventory:
    """Find and check one split of a data set.

    Args:
        split: of ``train``, ``val``, ``test`` and ``all``; None is ``test`` of a data set with a
            DUTS-TE, else ``all``.
        data_path, image_dir, mask_dir, skip_invalid, read: as for :func:`find_splits`.

    Returns:
        The split.

    Raises:
        UserError: as :func:`find_splits`.

    Example:
        >>> find_pairs("DUTS", "train").pairs[0].image.name  # doctest: +SKIP
        'ILSVRC2012_test_00000004.jpg'
    """
    if split is None:
        has_test = data_path and (Path(data_path) / DUTS["test"]).is_dir()
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

    In the DUTS layout (``DUTS-TR/DUTS-TR-Image``, ``DUTS-TR/DUTS-TR-Mask``, ``DUTS-TE/…``),
    ``train`` is DUTS-TR and ``test`` is DUTS-TE. Elsewhere, and in a DUTS-TR alone, ``train.txt``,
    ``val.txt`` and ``test.txt`` (names of images, one a line) choose the splits. What they leave
    is ``train`` or, where that has a list, ``test``. Without any list, one image in ten, chosen by
    its name, is ``test``, and the rest is ``train``.

    Args:
        data_path: a folder in the DUTS layout, or with ``images/`` and ``masks/``, or folders of
            other names that such sets have (:func:`~train_utils.data.folders.find_folders`).
        splits: of ``train``, ``val``, ``test`` and ``all``.
        image_dir: with ``mask_dir``, in place of ``data_path``: any two folders, or one for both.
        mask_dir: see ``image_dir``.
        skip_invalid: leave faulty pairs out and name them in the notes; every file is opened, to
            find faults that headers don't show. An image in two lists is left out of ``train``
            and, where ``test.txt`` has it, of ``val``.
        read: how masks are read (:func:`~train_utils.data.masks.mask_reader`). What kind they are
            is decided by all masks of the data set together.

    Returns:
        The splits, in the order of ``splits``.

    Raises:
        UserError: there is no data set, or something in it is faulty; it names every fault.
    """
    root, folders = find_folders(data_path, image_dir, mask_dir)
    results = [_find_split(root, folders, split, skip_invalid) for split in splits]
    read, notes = _decide(root, folders, read)
    images, masks = folders.get(None, (root, root))
    usual = ("images", "masks"), ("duts-tr-image", "duts-tr-mask")
    if data_path and None in folders and (images.name.lower(), masks.name.lower()) not in usual:
        notes = [f"images of {images}, masks of {masks}", *notes]
    for found in results:
        found.read = read
        found.notes += notes
        check(found, skip_invalid, read)
    where = data_path or image_dir
    can_skip = skip_invalid and all(found.pairs for found in results)
    if any(found.faults for found in results) and not can_skip:
        raise InvalidDataError(str(where), results)
    for found in results:
        if not found.pairs:
            val = found.split == "test" and has_list(where, "val")
            raise UserError(
                f"{where}: no images for the {found.split} split; list some names in "
                f"{found.split}.txt, or add images",
                advice="val.txt holds some: {split} val" if val else None,
            )
        if found.faults:
            found.notes.append(_left_out(found.faults))
        rescaled = sum(pair.rescaled for pair in found.pairs)
        if rescaled:
            found.notes.append(
                f"{rescaled} masks of {len(found.pairs)} have another size than their image, of "
                "the same aspect: scaled to it for training, scored at their own"
            )
    return results


def find_training_data(
    data_paths: Sequence[str | Path] = (),
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    skip_invalid: bool = False,
    read: MaskReader = read_mask,
) -> tuple[list[Inventory], Inventory]:
    """Find what a run trains on, in one data set or more, and what chooses its best weights.

    Args:
        data_paths: data sets as :func:`find_splits` takes them; the first one chooses the best
            weights, by ``val.txt`` if it has one, else by its ``test`` split.
        image_dir, mask_dir: in place of ``data_paths``.
        skip_invalid: as there; it also leaves out images that another of the sets holds out.
        read: how masks are read.

    Returns:
        ``train`` of each data set, none of it held out by any of them; and ``val`` or ``test`` of
        the first.

    Raises:
        UserError: as :func:`find_splits`.
    """
    paths: list[str | Path | None] = [*data_paths] or [None]
    held_out = "val" if has_list(paths[0] or image_dir, "val") else "test"
    options = image_dir, mask_dir, skip_invalid, read
    train, test = find_splits(paths[0], ("train", held_out), *options)
    training = [train, *(find_pairs(path, "train", *options) for path in paths[1:])]
    everywhere = {key: path for found in training for key, path in found.held_out.items()}
    for found, path in zip(training, paths, strict=True):
        found.faults = _leave_out(found, everywhere)
        if found.faults and not (skip_invalid and found.pairs):
            raise InvalidDataError(str(path), [found])
        if found.faults:
            found.notes.append(_left_out(found.faults))
    return training, test


def has_list(data_path: str | Path | None, split: str) -> bool:
    """Whether a data set has a list ``SPLIT.txt``.

    Args:
        data_path: its folder; None has none.
        split: ``train``, ``val`` or ``test``.
    """
    return data_path is not None and (Path(data_path) / f"{split}.txt").is_file()


def _decide(root: Path, folders: Folders, read: MaskReader) -> tuple[MaskReader, list[str]]:
    """How the masks of the whole data set are read, and what is to be known of them."""
    rule = MaskRule() if read is read_mask else read
    if not isinstance(rule, MaskRule):
        return read, []
    everything = _find_split(root, folders, "all", skip_invalid=True)
    return decide(rule, [pair.mask for pair in everything.pairs])


def _find_split(root: Path, folders: Folders, split: str, skip_invalid: bool) -> Inventory:
    """Match the pairs of a split; of ``train``, none that is held out."""
    found = Inventory(split)
    if None not in folders and split not in (*folders, "all"):
        missing = f"holds no {DUTS[split]}" if split in DUTS else "the DUTS layout has no val split"
        raise UserError(missing, "data_path", root)
    for part, (image_dir, mask_dir) in folders.items():
        if part in (None, split) or split == "all":
            images, masks = list_files(image_dir, mask_dir, found)
            wanted = {path.stem for path in images}
            if part is None:
                chosen = _choose(root, split, wanted, found, skip_invalid)
                wanted = chosen[split]
                held_out = chosen["val"] | chosen["test"] if split == "train" else set()
                found.held_out |= {file_id(path): path for path in images if path.stem in held_out}
            match(images, masks, wanted, found)
        elif split == "train" and image_dir.is_dir():
            found.held_out |= {file_id(path): path for path in list_images(image_dir)}
    if split == "train":
        found.faults += _leave_out(found, found.held_out)
    return found


def _leave_out(found: Inventory, held_out: dict[FileId, Path]) -> list[UserError]:
    """Take images that are held out, under whatever name, out of the pairs to train on."""
    faults, kept = [], []
    for pair in found.pairs:
        other = held_out.get(file_id(pair.image))
        if other is None:
            kept.append(pair)
        else:
            text = f"{pair.image}: the same file as {other}, which is held out of training"
            faults.append(UserError(text))
    found.pairs = kept
    return faults


def _choose(
    folder: Path, split: str, stems: set[str], found: Inventory, skip_invalid: bool
) -> dict[str, set[str]]:
    """The stems of every split, by the lists in a folder or, without any, by the images' names.

    No image is in two of ``train``, ``val`` and ``test``. Faults of the lists are added to
    ``found``, as far as they concern its split.
    """
    listed = [name for name in _LISTED if has_list(folder, name)]
    named = {name: _read_list(folder / f"{name}.txt", stems) for name in listed}
    for one, other in combinations(named, 2):
        both = sorted(named[one] & named[other])
        if both:
            verb = "are" if len(both) > 1 else "is"
            text = f"{folder}: {first_ten(both)} {verb} in {one}.txt and in {other}.txt"
            if skip_invalid:
                found.notes.append(f"{text}: left out of {one}")
            else:
                found.faults.append(UserError(text))
        named[one] = named[one] - named[other]
    if split == "val" and "val" not in named:
        raise UserError(f"{folder}: no val.txt in it, so there is no val split")
    found.faults += [
        UserError(f"{folder / split}.txt: lists {stem}, which has no image")
        for stem in sorted(named.get(split, set()) - stems)
    ]
    if not named:
        if split != "all":
            found.notes.append("no train.txt or test.txt: one image in ten is held out to test")
        by_hash = sorted(stems, key=_hash)
        named["test"] = {stem for stem in stems if _hash(stem) % 10 == 0} or set(by_hash[:1])
    rest = stems.difference(*named.values())
    chosen = {"train": set(), "val": set(), "test": set(), "all": stems}
    chosen["test" if "train" in named else "train"] = rest
    return chosen | {name: names & stems for name, names in named.items()}


def _hash(stem: str) -> int:
    """The same on every machine, so that the same images stay held out as others are added."""
    return int.from_bytes(hashlib.sha256(os.fsencode(stem)).digest()[:8], "big")


def _read_list(path: Path, stems: set[str]) -> set[str]:
    """The stems that a list names: each line as it is or, where no image is called so, without
    folders before it, an image's suffix behind it, and spaces around it.

    Raises:
        UserError: not a text. What it holds out is then unknown.
    """
    try:
        text = path.read_text("utf-8-sig", errors="surrogateescape")  # as names of files are
    except OSError as error:
        raise UserError(f"{path}: not a readable list of names ({error})") from None
    if "\0" in text:
        raise UserError(f"{path}: not a readable list of names; save it as UTF-8")
    lines = text.split("\n")  # names may hold all other characters
    return {_resolve(line, stems) for line in lines if line.strip()}


def _resolve(line: str, stems: set[str]) -> str:
    readings = [line]
    for name in (Path(line).name, Path(line.strip()).name):
        is_file = Path(name.rstrip()).suffix.lower() in IMAGE_SUFFIXES
        readings += [name, Path(name).stem] if is_file else [name]
    return next((name for name in readings if name in stems), readings[-1])


def _left_out(faults: Sequence[UserError]) -> str:
    named = "".join(f"\n  {fault.args[0]}" for fault in faults)
    return f"{len(faults)} fault{'s' * (len(faults) > 1)}, left out:{named}"
