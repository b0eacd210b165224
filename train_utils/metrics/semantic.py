"""The measures of semantic segmentation, from one confusion matrix over all pixels of a set."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from src.errors import UserError

from ..distributed import gather, sum_over_ranks
from .evaluate import Evaluation, Scored, progress


def evaluate_classes(
    batches: Iterable[Scored],
    classes: int,
    ignore_index: int | None = None,
    device: torch.device | None = None,
    total: int | None = None,
) -> Evaluation:
    """Score class maps by every measure, over the batches of all ranks.

    Args:
        batches: of this rank: class maps H×W uint8 and masks of class indices.
        classes: K.
        ignore_index: pixels of this mask value are ignored.
        device: where ranks sum up; the CPU by default.
        total: how many batches there are, for the progress bar.

    Returns:
        The scores of the data set and of each image, except images whose pixels are all ignored;
        the same on every rank.

    Raises:
        UserError: there is no pixel to score.
    """
    confusion = torch.zeros(classes, classes, dtype=torch.float64)
    own: dict[int, dict[str, Any]] = {}
    for batch in progress(batches, total):
        for found, truth, index in zip(*batch, strict=True):
            counts = _count(found, truth, classes, ignore_index)
            confusion += counts
            if counts.any():
                own[index] = semantic_measures(counts)
    confusion = sum_over_ranks(confusion, device or torch.device("cpu"))
    if not confusion.any():
        raise UserError("nothing to score: no image could be read, or all pixels are ignored")
    rows = {index: row for part in gather(own) for index, row in part.items()}
    return Evaluation(semantic_measures(confusion), {}, dict(sorted(rows.items())), confusion)


def _count(found: Tensor, truth: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """Pixels of one image by true class (rows) and predicted class (columns), float64 K×K."""
    index = truth.to(torch.int32) * classes + found
    if ignore_index is not None:
        index = index[truth != ignore_index]
    counts = torch.bincount(index.flatten(), minlength=classes * classes)
    return counts.cpu().double().view(classes, classes)


def semantic_measures(confusion: Tensor) -> dict[str, float | list[float | None]]:
    """Compute the measures of a confusion matrix.

    Means are over the classes that occur in the masks (recall), in the maps (precision) or in
    either (IoU, Dice): a class that is predicted but in no mask has an IoU of 0, as in
    mmsegmentation and torchmetrics. ``dice`` = (2·Σxy + 1) / (Σx² + Σy² + 1) over all pixels of the
    set, for the object if there are two classes, else the mean over classes. ``class_iou`` and
    ``class_accuracy`` (recall) have None for an absent class.

    Args:
        confusion: pixels by true class (rows) and predicted class (columns), K×K float64.

    Returns:
        The measures under the names of validation.py's JSON.

    Example:
        >>> semantic_measures(torch.tensor([[3.0, 1.0], [0.0, 4.0]]))["pixel_accuracy"]
        0.875
    """
    hits, true, found = confusion.diag(), confusion.sum(1), confusion.sum(0)
    present, chosen = true > 0, found > 0
    occurs = present | chosen
    iou = hits / (true + found - hits).clamp(min=1)
    recall = hits / true.clamp(min=1)
    dice = (2 * hits + 1) / (true + found + 1)
    pixels = confusion.sum().clamp(min=1)
    return {
        "pixel_accuracy": (hits.sum() / pixels).item(),
        "mean_pixel_accuracy": recall[present].mean().item(),
        "mean_precision": (hits / found.clamp(min=1))[chosen].mean().item(),
        "mean_iou": iou[occurs].mean().item(),
        "frequency_weighted_iou": (true / pixels * iou).sum().item(),
        "dice": (dice[1] if len(dice) == 2 else dice[occurs].mean()).item(),
        **{
            name: [v if p else None for v, p in zip(values.tolist(), counted, strict=True)]
            for name, values, counted in (
                ("class_iou", iou, occurs),
                ("class_accuracy", recall, present),
            )
        },
    }


def default_names(classes: int) -> tuple[str, ...]:
    """Names for classes without names in reports: ``background`` and ``object``, or numbers.

    Example:
        >>> default_names(3)
        ('0', '1', '2')
    """
    return ("background", "object") if classes == 2 else tuple(map(str, range(classes)))
