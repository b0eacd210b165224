"""The data sets and the loss of a run."""

import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from src import UserError
from src.files import check_outputs
from src.words import counted

from ...config import Settings
from ...data.dataset import SegmentationDataset
from ...data.layouts.folders import find_folders, find_scenes, list_files
from ...data.masks import MaskRule, read_table
from ...data.pairs import InvalidDataError, Inventory, Pair, file_id
from ...data.splits import find_pairs, find_training_data
from ...distributed import is_main
from ..losses import DeepSupervision, balanced_weights
from ..supervision import has_mask, unlabelled_pairs


def make_datasets(
    settings: Settings, starts: Sequence[int] | None = None
) -> tuple[SegmentationDataset, SegmentationDataset, list[int]]:
    """The training set, the set that selects the best weights, and how many images of each data
    set are in the first; images without masks come last.

    Args:
        settings: of the run.
        starts: the first epoch of each image size, counted from 0; None: as in a new run.

    Raises:
        UserError: a data set is missing or faulty.
    """
    from ...data.transforms import EvalPreset, Growing, TrainPreset, Varying  # torchvision: 1 s

    found = _find_first(settings) if settings.overfit else _find(settings)
    sets, held_out, unlabelled, notes = found
    if is_main():
        print(*dict.fromkeys(notes), sep="\n", end="\n" if notes else "", flush=True)
    preset = partial(
        TrainPreset,
        augment="none" if settings.overfit else settings.augment,
        classes=bool(settings.num_classes),
        soft=settings.soft_cut is not None,
    )
    drawn = [
        Varying([preset(*sizes) for sizes in stage], settings.seed) for stage in settings.stages
    ]
    starts = settings.first_epochs if starts is None else starts
    growing = Growing(drawn, starts)
    growing_test = Growing([EvalPreset(n) for n in settings.eval_sizes], starts)
    pairs = [pair for part in sets for pair in part] + unlabelled
    lengths = [len(part) for part in sets] + ([len(unlabelled)] if unlabelled else [])
    firsts = accumulate((len(part) for part in sets), initial=0)
    shared = zip(firsts, sets, settings.data_shares or (), strict=False)
    donors = [first + i for first, part, share in shared if share for i in range(len(part))]
    return (
        SegmentationDataset(pairs, growing, settings.seed, donors=donors),
        SegmentationDataset(held_out, growing_test),
        lengths,
    )


def check_paths(settings: Settings) -> None:
    """Check that the data's paths exist, before a teacher's weights are fetched.

    Raises:
        UserError: a file or folder does not exist.
    """
    for name in ("data_path", "unlabelled"):
        for path in getattr(settings, name) or ():
            if not path.is_dir():
                raise UserError("no such folder", name, path)
    for path in settings.annotations or ():
        if path != "auto" and not Path(path).exists():
            raise UserError("no such file or folder", "annotations", path)


def report_unused_classes(settings: Settings) -> None:
    """Print a note if classes.txt is not used; its colours are, even without ``num_classes``."""
    table = settings.data_path[0] / "classes.txt" if settings.data_path else None
    if settings.num_classes or table is None or not table.is_file() or not is_main():
        return
    with suppress(UserError):  # an unreadable table has no colours
        if read_table(table).colours:
            return
    print("classes.txt is ignored without --num-classes: everything is one object", flush=True)


_Found = tuple[list[list[Pair]], list[Pair], list[Pair], list[str]]
"""Pairs of each data set, held-out pairs, images without masks, and notes."""


def _reading(settings: Settings) -> tuple[Path | None, Path | None, bool, MaskRule]:
    """The arguments of functions that find data: folders, whether to skip invalid pairs, and how
    to read masks.
    """
    return settings.image_dir, settings.mask_dir, settings.skip_invalid, settings.mask_rule()


def _find(settings: Settings) -> _Found:
    sets, held_out = find_training_data(
        settings.data_path or (), *_reading(settings), annotations=settings.annotations or ()
    )
    notes = [note for found in (sets[0], held_out, *sets[1:]) for note in found.notes]
    unlabelled: list[Pair] = []
    if settings.unlabelled:
        used = (pair.image for found in (*sets, held_out) for pair in found.pairs)
        known = {*map(file_id, used), *(key for found in sets for key in found.held_out)}
        masks = {*map(file_id, _mask_files(settings))}
        unlabelled, more = unlabelled_pairs(
            settings.unlabelled, known, settings.skip_invalid, masks
        )
        notes += [*more, f"{counted(len(unlabelled), 'image')} without masks"]
    return [found.pairs for found in sets], held_out.pairs, unlabelled, notes


def _mask_files(settings: Settings) -> Iterator[Path]:
    """All mask files of the data sets, including those of held-out images and of no image."""
    for path in settings.data_path or (None,):
        with suppress(UserError):  # a set with drawn masks has no mask files
            _, folders = find_folders(path, settings.image_dir, settings.mask_dir)
            for images, masks in folders.values():
                for pair in find_scenes(images, masks).values():
                    yield from list_files(*pair, Inventory("all"))[1]


def _find_first(settings: Settings) -> _Found:
    """The first pairs of the first data set, to train and to score on."""
    annotations = (settings.annotations or (None,))[0]
    path, options = (settings.data_path or (None,))[0], (*_reading(settings), annotations)
    found = _find_training_split(path, options)
    count = settings.overfit or 0
    if len(found.pairs) < count:
        advice = f"there are {len(found.pairs)}"
        raise UserError("more than the pairs to train on", "overfit", count, advice)
    first = found.pairs[:count]
    what = "pair" if count == 1 else f"{count} pairs"
    note = (
        f"training and scoring on the first {what} of the training split, neither cropped, flipped "
        "nor augmented"
    )
    return [first], first, [], [*found.notes, note]


def _find_training_split(path: Path | None, options: tuple[Any, ...]) -> Inventory:
    """The training split, or all pairs if it is empty, as in a set of a single pair."""
    try:
        return find_pairs(path, "train", *options)
    except InvalidDataError:
        raise
    except UserError:
        return find_pairs(path, "all", *options)


def check_run_files(
    settings: Settings, folder: Path, *datasets: SegmentationDataset, resumed: bool
) -> None:
    """Check on the main rank that a run overwrites none of its inputs.

    Args:
        settings: of the run.
        folder: of the run.
        *datasets: whose files are read.
        resumed: the run continues from a checkpoint in its folder.

    Raises:
        UserError: an output of the run is one of its data files or start weights, or cannot be
            written.
    """
    if not is_main():
        return
    weights = (settings.teacher, *(() if resumed else (settings.pretrained, settings.backbone)))
    inputs = [Path(source) for source in weights if source]
    for dataset in datasets:
        inputs += [file for pair in dataset.pairs for file in (pair.image, pair.mask)]
    names = ("last.pt", "best.pt", "args.json", "log.csv", "curves.png")
    check_outputs({"output_dir": [folder / name for name in names]}, inputs)


def make_losses(settings: Settings, train_set: SegmentationDataset) -> list[DeepSupervision]:
    """The loss, and the final loss if there is one; balanced class weights are computed from the
    masks of the training set.
    """
    classes, weights = settings.num_classes, settings.class_weights
    cut = settings.soft_cut
    if weights == ("balanced",):
        pairs = [pair for pair in train_set.pairs if has_mask(pair)]
        weights = tuple(balanced_weights(pairs, classes or 2, settings.ignore_index, cut))
        if is_main():
            print("class weights:", *(f"{weight:.3g}" for weight in weights), flush=True)
    return [
        DeepSupervision(
            weights=settings.loss_weights,
            loss=name,
            classes=classes or 1,
            ignore_index=settings.ignore_index,
            class_weights=None if weights is None else [float(weight) for weight in weights],
            soft=cut is not None,
        )
        for name in (settings.loss, settings.final_loss)
        if name is not None
    ]


def describe(pairs: Sequence[Pair], purpose: str) -> str:
    """The number of images and a checksum of their names, which tells sets apart."""
    names = "\n".join(pair.name for pair in pairs)
    checksum = zlib.crc32(os.fsencode(names))
    return f"{counted(len(pairs), 'image')} {purpose} (checksum of names {checksum:08x})"
