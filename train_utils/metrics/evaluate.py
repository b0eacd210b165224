"""Score maps on a data set: the one loop that training and validation.py share."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from src import Predictor, UserError
from src.pictures.classes import most_probable

from ..distributed import gather, is_main, sum_over_ranks
from .saliency import PER_PICTURE, SaliencyMetrics, histogram, to_levels
from .structure import structural

_IN_FLIGHT = 4  # batches whose structure is still being measured


class Scored(NamedTuple):
    """Maps ready to be scored, and what they are scored against, of one batch."""

    levels: list[Tensor]  # H×W uint8, each of its mask's size
    masks: list[Tensor]  # H×W uint8 {0, 1}, on the same device
    indices: list[int]  # of the pictures in their data set


@dataclass(frozen=True)
class Evaluation:
    """What came out, of all ranks together."""

    results: dict[str, Any]  # see SaliencyMetrics.results and semantic_measures
    curves: dict[str, list[float]]  # see SaliencyMetrics.curves
    rows: dict[int, dict[str, Any]]  # of each picture, by its index
    confusion: Tensor | None = None  # of classes: pixels by true (rows) and predicted class


def predicted(predictor: Predictor, loader: DataLoader, stretch: bool) -> Iterator[Scored]:
    """Maps of a network, resized to their masks.

    Args:
        predictor: what turns prepared pictures into maps.
        loader: of :func:`~train_utils.data.loaders.eval_loader`, at the predictor's img_size.
        stretch: stretch each map by its own minimum and maximum, before it is rounded to 8 bits.

    Raises:
        UserError: the network tells classes.
    """
    if predictor.classes:
        raise UserError(
            f"{predictor.origin}: tells {predictor.classes} classes, none of which is the object; "
            f"score it by --metrics semantic --num-classes {predictor.classes}"
        )
    return _scored(predictor, loader, lambda maps: to_levels(maps[predictor.channel], stretch))


def predicted_classes(predictor: Predictor, loader: DataLoader, classes: int) -> Iterator[Scored]:
    """Class maps of a network, resized to their masks: object where ≥ 0.5 for a network of one map,
    else the most probable class.

    Args:
        predictor, loader: as for :func:`predicted`.
        classes: how many there are, 2 for object and background.

    Raises:
        UserError: the network has another number of maps.
    """
    maps = predictor.model.config.out_ch
    if maps != (1 if classes == 2 else classes) and maps != classes:
        raise UserError(f"--num-classes {classes}: the network has {maps} maps; one for each class")
    return _scored(predictor, loader, most_probable)


def _scored(
    predictor: Predictor, loader: DataLoader, found: Callable[[Tensor], Tensor]
) -> Iterator[Scored]:
    """What ``found`` makes, H×W uint8, of the probabilities C×H×W of each picture."""
    for pictures, masks, indices in loader:
        # A batch that is not full is computed as a full one: convolutions round by its size, and
        # how many processes share the set must not show. On a CPU it is enough that each core has a
        # picture of its own, as in a full one.
        size = loader.batch_size
        if predictor.device.type == "cpu":
            size = min(size, torch.get_num_threads())
        missing = max(0, size - len(pictures))
        full = torch.cat((pictures, pictures[:1].expand(missing, -1, -1, -1)))
        with torch.inference_mode():
            maps = predictor.probabilities(full)[: len(pictures)]
            levels = [
                found(predictor.resize(one, mask.shape[-2:]))
                for one, mask in zip(maps, masks, strict=True)
            ]
        masks = [mask[0].to(predictor.device, non_blocking=True) for mask in masks]
        yield Scored(levels, masks, indices)


def evaluate(
    batches: Iterable[Scored],
    stretch: bool = True,
    structure: bool = False,
    device: torch.device | None = None,
    total: int | None = None,
) -> Evaluation:
    """Every measure over a set, this rank's ``batches`` and those of the others.

    Args:
        batches: of :func:`predicted`, or of maps that exist already.
        stretch: stretch each map by its own minimum and maximum first (published convention).
        structure: weighted F and relaxed boundary F too; threads find them while the next maps
            are being made.
        device: where ranks meet to add up; the CPU by default.
        total: how many batches there are, for the progress bar.
    """
    metrics, indices = SaliencyMetrics(stretch), []
    pending: deque[tuple[list[Tensor], list[Future]]] = deque()
    shown = None if is_main() else True
    workers = min(8, os.cpu_count() or 1)

    def finish_one() -> None:
        histograms, futures = pending.popleft()
        metrics.update(histograms, [f.result() for f in futures] if structure else None)

    with ThreadPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        bar = tqdm(batches, "scoring", total, leave=False, disable=shown, unit="batch")
        for levels, masks, which in bar:
            pairs = list(zip(levels, masks, strict=True))
            futures = [
                pool.submit(structural, s.cpu().numpy(), m.cpu().numpy(), stretch)
                for s, m in (pairs if structure else ())
            ]
            pending.append(([histogram(s, m) for s, m in pairs], futures))
            indices += which
            if len(pending) > _IN_FLIGHT:
                finish_one()
        while pending:
            finish_one()
    own = dict(zip(indices, metrics.rows, strict=True))
    rows = {index: row for part in gather(own) for index, row in part.items()}
    metrics.sums = sum_over_ranks(metrics.sums, device or torch.device("cpu"))
    metrics.structure = structure  # also where this rank had no picture
    if not metrics.sums[0]:
        raise UserError("nothing to score: no picture could be read")
    names = PER_PICTURE if structure else PER_PICTURE[:-2]
    return Evaluation(
        metrics.results(),
        metrics.curves(),
        {index: dict(zip(names, rows[index], strict=False)) for index in sorted(rows)},
    )
