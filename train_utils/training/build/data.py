"""What a run learns from: its data sets, and the loss."""

import os
import zlib
from pathlib import Path

from src.files import check_outputs

from ...config import Settings
from ...data.dataset import SegmentationDataset
from ...data.masks import mask_reader
from ...data.splits import find_training_data
from ...distributed import is_main
from ..losses import DeepSupervision, balanced_weights


def make_datasets(
    settings: Settings,
) -> tuple[SegmentationDataset, SegmentationDataset, list[int]]:
    """The images to train on, those that choose the best weights, and how many of each data set
    are in the first.

    Raises:
        UserError: a data set is missing or faulty.
    """
    from ...data.transforms import EvalPreset, Growing, TrainPreset, Varying  # torchvision: 1 s

    read = mask_reader(
        settings.num_classes, settings.ignore_index, settings.masks, settings.mask_threshold
    )
    folders = settings.image_dir, settings.mask_dir
    sets, held_out = find_training_data(
        settings.data_path or (), *folders, settings.skip_invalid, read
    )
    notes = [note for found in (sets[0], held_out, *sets[1:]) for note in found.notes]
    if is_main():
        print(*dict.fromkeys(notes), sep="\n", end="\n" if notes else "", flush=True)
    strong, classes = settings.augment == "strong", bool(settings.num_classes)
    soft = settings.soft_cut is not None
    drawn = [
        Varying([TrainPreset(*sizes, strong, classes, soft) for sizes in stage], settings.seed)
        for stage in settings.stages
    ]
    growing = Growing(drawn, settings.first_epochs)
    growing_test = Growing([EvalPreset(n) for n in settings.eval_sizes], settings.first_epochs)
    pairs = [pair for found in sets for pair in found.pairs]
    return (
        SegmentationDataset(pairs, growing, settings.seed),
        SegmentationDataset(held_out.pairs, growing_test),
        [len(found.pairs) for found in sets],
    )


def check_run_files(
    settings: Settings, folder: Path, *datasets: SegmentationDataset, resumed: bool
) -> None:
    """Check that a run writes over nothing that it reads, on the first rank.

    Args:
        settings: of the run.
        folder: of the run.
        *datasets: their files.
        resumed: the run continues from a checkpoint in its folder.

    Raises:
        UserError: a file of the run is one of the data or the weights that it starts from, or
            cannot be written.
    """
    if not is_main():
        return
    weights = () if resumed else (settings.pretrained, settings.backbone)
    inputs = [Path(source) for source in weights if source]
    for dataset in datasets:
        inputs += [file for pair in dataset.pairs for file in (pair.image, pair.mask)]
    names = ("last.pt", "best.pt", "args.json", "log.csv", "curves.png")
    check_outputs({"output_dir": [folder / name for name in names]}, inputs)


def make_loss(settings: Settings, train_set: SegmentationDataset) -> DeepSupervision:
    """The loss; balanced class weights are counted in the masks of the training set."""
    classes, weights = settings.num_classes, settings.class_weights
    cut = settings.soft_cut
    if weights == ("balanced",):
        weights = tuple(balanced_weights(train_set.pairs, classes or 2, settings.ignore_index, cut))
        if is_main():
            print("class weights:", *(f"{weight:.3g}" for weight in weights), flush=True)
    return DeepSupervision(
        weights=settings.loss_weights,
        loss=settings.loss,
        classes=classes or 1,
        ignore_index=settings.ignore_index,
        class_weights=None if weights is None else [float(weight) for weight in weights],
        soft=cut is not None,
    )


def describe(dataset: SegmentationDataset, purpose: str) -> str:
    """The number of images, and a checksum of their names that shows whether they are others."""
    names = "\n".join(pair.name for pair in dataset.pairs)
    return f"{len(dataset)} pictures {purpose} (names {zlib.crc32(os.fsencode(names)):08x})"
