"""Data sets on disk and their splits: which images are trained on, and which are held out.

However the splits are defined, an image that is held out is never trained on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from src.errors import UserError
from src.words import counted

from .layouts.folders import DUTS
from .layouts.lists import LISTED
from .layouts.lists import has_list as has_list
from .layouts.opening import DataSet, leave_out, open_dataset
from .masks import MaskReader, read_mask
from .pairs import InvalidDataError, Inventory, check, list_faults

SPLITS = (*LISTED, "all")


def find_pairs(
    data_path: str | Path | None = None,
    split: str | None = None,
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    skip_invalid: bool = False,
    read: MaskReader = read_mask,
    annotations: str | Path | None = None,
) -> Inventory:
    """Find and check one split of a data set.

    Args:
        split: one of ``train``, ``val``, ``test`` and ``all``; None is ``test`` for a data set with
            a DUTS-TE, else ``all``.
        data_path, image_dir, mask_dir, skip_invalid, read, annotations: as for
            :func:`find_splits`.

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
    options = image_dir, mask_dir, skip_invalid, read, annotations
    return find_splits(data_path, (split,), *options)[0]


def find_splits(
    data_path: str | Path | None = None,
    splits: Sequence[str] = ("train", "test"),
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    skip_invalid: bool = False,
    read: MaskReader = read_mask,
    annotations: str | Path | None = None,
) -> list[Inventory]:
    """Find and check splits of a data set; only headers are read, so 10,000 pairs take seconds.

    In the DUTS layout (``DUTS-TR/DUTS-TR-Image``, ``DUTS-TR/DUTS-TR-Mask``, ``DUTS-TE/…``),
    ``train`` is DUTS-TR and ``test`` is DUTS-TE. Elsewhere, and in a DUTS-TR alone, ``train.txt``,
    ``val.txt`` and ``test.txt`` (names of images, one per line) define the splits. Unlisted images
    are ``train`` or, if that has a list, ``test``; if both have one, they are in no split but
    ``all``, and a note counts them. Without any list, one image in ten, chosen by its name, is
    ``test``, and the rest is ``train``; in a set of scenes, one scene in ten.

    Args:
        data_path: a folder in the DUTS layout, or with ``images/`` and ``masks/``, or with folders
            of other usual names (:func:`~train_utils.data.layouts.folders.find_folders`); or, if it
            has no masks, with annotations
            (:func:`~train_utils.data.annotations.find_annotated`).
        splits: any of ``train``, ``val``, ``test`` and ``all``.
        image_dir: with ``mask_dir``, in place of ``data_path``: any two folders, or one for both.
        mask_dir: see ``image_dir``.
        skip_invalid: leave faulty pairs out and list them in the notes; every file is opened, to
            find faults that headers don't show. An image in two lists is left out of ``train``
            and, if ``test.txt`` has it, of ``val``.
        read: how masks are read (:func:`~train_utils.data.masks.mask_reader`). Their kind is
            decided from all masks of the data set together.
        annotations: a file of annotations, or a folder of some, whatever else ``data_path`` holds;
            alone, its images are searched for next to it, or in ``image_dir`` if given.

    Returns:
        The splits, in the order of ``splits``.

    Raises:
        UserError: there is no data set, or something in it is faulty; the error lists every fault.
    """
    data = open_dataset(data_path, image_dir, mask_dir, read, annotations)
    return _check_splits(data, splits, skip_invalid)


def _find(data: DataSet, split: str, skip_invalid: bool) -> Inventory:
    """A split, checked."""
    found = data.find(split, skip_invalid)
    found.read = data.read
    found.notes += data.notes
    found.class_names = data.class_names
    check(found, skip_invalid, data.read)
    return found


def _check_splits(data: DataSet, splits: Sequence[str], skip_invalid: bool) -> list[Inventory]:
    by_split = {split: _find(data, split, skip_invalid) for split in splits}
    if skip_invalid and data.holds_out_by_name and set(splits) != {"all"}:
        test = by_split.get("test") or _find(data, "test", True)
        if not test.pairs:
            whole = by_split.get("all") or _find(data, "all", True)
            data = replace(data, sound=frozenset(pair.name for pair in whole.pairs))
            by_split = {split: _find(data, split, True) for split in splits}
    results = [*by_split.values()]
    can_skip = skip_invalid and all(found.pairs for found in results)
    if any(found.faults for found in results) and not can_skip:
        raise InvalidDataError(data.where, results)
    if faults := {fault.args[0]: fault for found in results for fault in found.faults}:
        results[0].notes.append(_left_out([*faults.values()]))
    for found in results:
        if not found.pairs:
            val = found.split == "test" and data.has("val")
            raise UserError(
                f"{data.where}: no images for the {found.split} split; list some names in "
                f"{found.split}.txt, or add images",
                advice="val.txt holds some: {split} val" if val else None,
            )
        rescaled = sum(pair.rescaled for pair in found.pairs)
        if rescaled:
            what = f"{counted(rescaled, 'mask')} of {len(found.pairs)}"
            verb, whose = ("differs", "its") if rescaled == 1 else ("differ", "their")
            found.notes.append(
                f"{what} {verb} in size from {whose} image, with the same aspect: scaled to it "
                f"for training, scored at {whose} own size"
            )
    return results


def find_training_data(
    data_paths: Sequence[str | Path] = (),
    image_dir: str | Path | None = None,
    mask_dir: str | Path | None = None,
    skip_invalid: bool = False,
    read: MaskReader = read_mask,
    annotations: Sequence[str | Path | None] = (),
) -> tuple[list[Inventory], Inventory]:
    """Find the images to train on, in one data set or more, and those that select the best weights.

    Args:
        data_paths: data sets as for :func:`find_splits`; the first one selects the best weights, by
            ``val.txt`` if it has one, else by its ``test`` split.
        image_dir, mask_dir: instead of ``data_paths``.
        skip_invalid: as there; it also leaves out images that another of the sets holds out.
        read: how masks are read.
        annotations: of each data set, as there; None or ``auto`` for those that it holds.

    Returns:
        ``train`` of each data set, without images that any of them holds out; and ``val`` or
        ``test`` of the first.

    Raises:
        UserError: as :func:`find_splits`.
    """
    paths: list[str | Path | None] = [*data_paths] or [None]
    given = [*annotations] or [None] * len(paths)
    sets = [
        open_dataset(path, image_dir, mask_dir, read, file)
        for path, file in zip(paths, given, strict=True)
    ]
    check_names(dict(zip(map(str, paths), sets, strict=True)))
    held_out = "val" if sets[0].has("val") else "test"
    train, test = _check_splits(sets[0], ("train", held_out), skip_invalid)
    training = [train, *(_check_splits(one, ("train",), skip_invalid)[0] for one in sets[1:])]
    everywhere = {key: path for found in training for key, path in found.held_out.items()}
    for found, path in zip(training, paths, strict=True):
        found.faults = leave_out(found, everywhere)
        if found.faults and not (skip_invalid and found.pairs):
            raise InvalidDataError(str(path), [found])
        if found.faults:
            found.notes.append(_left_out(found.faults))
    if len(paths) > 1:
        for found, path in zip((*training, test), (*paths, paths[0]), strict=True):
            found.notes = [f"{path}: {note}" for note in found.notes]
    return training, test


def check_names(sets: Mapping[str, DataSet | Inventory]) -> None:
    """Refuse data sets, given by their folders, that number the classes differently.

    Raises:
        UserError: two do.
    """
    named = {path: found.class_names for path, found in sets.items() if found.class_names}
    for path, names in named.items():
        first, other = next(iter(named.items()))
        if names != other:
            text = f"{path}: its classes are {', '.join(names)}; of {first}: {', '.join(other)}"
            raise UserError(
                text, advice="pass {classes} with all names, in the same order for all sets"
            )


def _left_out(faults: Sequence[UserError]) -> str:
    lines = list_faults(faults, lambda fault: fault.args[0], shown=None)
    return "\n".join([f"{counted(len(faults), 'fault')}, left out:", *lines])
