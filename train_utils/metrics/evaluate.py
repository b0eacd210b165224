"""Score maps on a data set: the one loop that training and validation.py share."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from src.errors import UserError
from src.inference.predictor import Predictor
from src.pictures.classes import most_probable

from ..data.dataset import SegmentationDataset
from ..data.loaders import Loader, LoadError
from ..distributed import gather, is_main, sum_over_ranks
from .saliency import PER_IMAGE, SaliencyMetrics, histogram, to_levels

_IN_FLIGHT = 4  # batches whose structure is still being measured

ImageLoader = Loader[SegmentationDataset]
"""Of :func:`~train_utils.data.loaders.eval_loader`, at the predictor's img_size."""


class Scored(NamedTuple):
    """A batch of maps ready to be scored, and the masks that they are scored against."""

    levels: list[Tensor]  # H×W uint8, each of its mask's size
    masks: list[Tensor]  # H×W uint8, on the same device: {0, 1}, or class indices
    indices: list[int]  # of the images in their data set


@dataclass(frozen=True)
class Evaluation:
    """The scores of a data set, of all ranks together.

    Args:
        results: see :meth:`SaliencyMetrics.results` and
            :func:`~train_utils.metrics.semantic.semantic_measures`.
        curves: see :meth:`SaliencyMetrics.curves`.
        rows: the scores of each image, by its index.
        confusion: of classes: pixels by true (rows) and predicted class.
    """

    results: dict[str, Any]
    curves: dict[str, list[float]]
    rows: dict[int, dict[str, Any]]
    confusion: Tensor | None = None


def require_one_map(predictor: Predictor, name: object) -> None:
    """Refuse a network of several maps, of which none can be scored as the object's.

    Args:
        predictor: of the network.
        name: of its weights, for the message.

    Raises:
        UserError: it has several.
    """
    maps = predictor.model.config.out_ch
    if maps != 1:
        advice = f"score it by {{metrics}} semantic {{num_classes}} {maps}"
        raise UserError(f"{name}: gives {maps} maps, not one", advice=advice)


def predicted(predictor: Predictor, loader: ImageLoader, stretch: bool) -> Iterator[Scored]:
    """Compute the maps of a network, resized to their masks.

    Args:
        predictor: of a network of one map.
        loader: of the images. Where the network gives values that are not finite, the image is
            treated as one that cannot be loaded: named by a UserError, or by ``loader.errors``.
        stretch: stretch each map by its own minimum and maximum, before it is rounded to 8 bits.

    Returns:
        Batches for :func:`evaluate`.

    Raises:
        UserError: the network has several maps.
    """
    require_one_map(predictor, predictor.origin)
    return _scored(predictor, loader, lambda maps: to_levels(maps[0], stretch))


def predicted_classes(predictor: Predictor, loader: ImageLoader, classes: int) -> Iterator[Scored]:
    """Compute the class maps of a network, resized to their masks.

    A pixel has the most probable class or, by a network of one map, is object from 0.5 on.

    Args:
        predictor, loader: as for :func:`predicted`.
        classes: how many there are, 2 for object and background.

    Returns:
        Batches for :func:`~train_utils.metrics.semantic.evaluate_classes`.

    Raises:
        UserError: the network has another number of maps.
    """
    maps = predictor.model.config.out_ch
    if maps != classes and (maps, classes) != (1, 2):
        raise UserError(f"the network has {maps} maps; one for each class", "num_classes", classes)
    return _scored(predictor, loader, most_probable)


def _scored(
    predictor: Predictor, loader: ImageLoader, convert: Callable[[Tensor], Tensor]
) -> Iterator[Scored]:
    """``convert`` makes H×W uint8 of the probabilities C×H×W of each image."""
    for images, masks, indices in loader:
        try:
            maps = _probabilities(predictor, images, loader.batch_size)
        except UserError as error:  # some of its values are not finite
            finite = _finite_images(predictor, images, indices, loader, error)
            if not finite:
                continue
            images, masks = images[finite], [masks[place] for place in finite]
            indices = [indices[place] for place in finite]
            maps = _probabilities(predictor, images, loader.batch_size)
        levels = [
            convert(predictor.resize(one, mask.shape[-2:]))
            for one, mask in zip(maps, masks, strict=True)
        ]
        masks = [mask[0].to(predictor.device, non_blocking=True) for mask in masks]
        yield Scored(levels, masks, indices)


@torch.inference_mode()
def _probabilities(predictor: Predictor, images: Tensor, batch_size: int) -> Tensor:
    # A batch that is not full is computed as a full one: convolutions round by its size, and how
    # many processes share the set must not show. On a CPU it is enough that each core has an image
    # of its own, as in a full one.
    size = batch_size
    if predictor.device.type == "cpu":
        size = min(size, torch.get_num_threads())
    missing = max(0, size - len(images))
    full = torch.cat((images, images[:1].expand(missing, -1, -1, -1)))
    return predictor.probabilities(full)[: len(images)]


def _finite_images(
    predictor: Predictor, images: Tensor, indices: list[int], loader: ImageLoader, error: UserError
) -> list[int]:
    """The places in a batch of the images whose maps are finite; the others become errors."""
    errors: dict[int, LoadError] = {}
    for place, index in enumerate(indices):
        try:
            _probabilities(predictor, images[place : place + 1], loader.batch_size)
        except UserError as reason:
            path = loader.dataset.pairs[index].image
            errors[place] = LoadError(index, UserError(f"{path}: {reason}"))
    if not errors:
        raise error
    loader.report(errors.values())
    return [place for place in range(len(indices)) if place not in errors]


def evaluate(
    batches: Iterable[Scored],
    stretch: bool = True,
    structure: bool = False,
    device: torch.device | None = None,
    total: int | None = None,
) -> Evaluation:
    """Score maps by every measure, this rank's batches and those of the others.

    Args:
        batches: of :func:`predicted`, or of maps that exist already.
        stretch: stretch each map by its own minimum and maximum first (published convention).
        structure: weighted F and relaxed boundary F too; threads compute them while the next maps
            are being made.
        device: where ranks meet to add up; the CPU by default.
        total: how many batches there are, for the progress bar.

    Returns:
        The scores of all ranks' images, on every rank.

    Raises:
        UserError: there is no map at all.
    """
    metrics = SaliencyMetrics(stretch)
    indices: list[int] = []
    bar = progress(batches, total)
    for histograms, measured, which in _measure(bar, stretch, structure):
        metrics.update(histograms, measured)
        indices += which
    own = dict(zip(indices, metrics.rows, strict=True))
    rows = {index: row for part in gather(own) for index, row in part.items()}
    metrics.sums = sum_over_ranks(metrics.sums, device or torch.device("cpu"))
    metrics.structure = structure  # also where this rank had no image
    if not metrics.sums[0]:
        raise UserError("nothing to score: no image could be read")
    names = PER_IMAGE if structure else PER_IMAGE[:-2]
    return Evaluation(
        metrics.results(),
        metrics.curves(),
        {index: dict(zip(names, rows[index], strict=False)) for index in sorted(rows)},
    )


def progress(batches: Iterable[Scored], total: int | None) -> Iterable[Scored]:
    """The batches, with a progress bar on the main rank's terminal."""
    hide = None if is_main() else True  # None: where there is no terminal
    return tqdm(batches, "scoring", total, leave=False, disable=hide, unit="batch")


def _measure(
    batches: Iterable[Scored], stretch: bool, structure: bool
) -> Iterator[tuple[list[Tensor], list[tuple[float, float]] | None, list[int]]]:
    """Histograms, structure (or None) and indices of each batch."""
    if not structure:
        for levels, masks, indices in batches:
            yield [histogram(s, m) for s, m in zip(levels, masks, strict=True)], None, indices
        return
    import cv2

    from .structure import structural

    pending: deque[tuple[list[Tensor], list[Future[tuple[float, float]]], list[int]]] = deque()
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for levels, masks, indices in batches:
            pairs = list(zip(levels, masks, strict=True))
            futures = [
                pool.submit(structural, s.cpu().numpy(), m.cpu().numpy(), stretch) for s, m in pairs
            ]
            pending.append(([histogram(s, m) for s, m in pairs], futures, indices))
            if len(pending) > _IN_FLIGHT:
                yield _result(*pending.popleft())
        while pending:
            yield _result(*pending.popleft())


def _result(
    histograms: list[Tensor], futures: list[Future[tuple[float, float]]], indices: list[int]
) -> tuple[list[Tensor], list[tuple[float, float]], list[int]]:
    return histograms, [future.result() for future in futures], indices
