"""Score maps on a data set: the one loop that training and validation.py share."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from src.errors import UserError
from src.inference.predictor import Predictor
from src.pictures.classes import most_probable
from src.pictures.images import open_image
from src.words import counted

from ..data.dataset import SegmentationDataset
from ..data.loaders import Loader
from ..distributed import gather, no_bar, sum_over_ranks
from .measures.matting import MATTING, matting_measures
from .measures.saliency import PER_IMAGE, STRUCTURAL, SaliencyMetrics, histogram, to_levels

_IN_FLIGHT = 4  # batches whose structural measures are still being computed

ImageLoader = Loader[SegmentationDataset]
"""From :func:`~train_utils.data.loaders.eval_loader`, at the predictor's img_size."""


class Scored(NamedTuple):
    """A batch of maps ready to be scored, and the masks that they are scored against."""

    levels: list[Tensor]  # H×W uint8, each of its mask's size
    masks: list[Tensor]  # H×W uint8, on the same device: {0, 1}, soft levels, or class indices
    indices: list[int]  # of the images in their data set


@dataclass(frozen=True)
class Evaluation:
    """The scores of a data set, over all ranks.

    Args:
        results: see :meth:`SaliencyMetrics.results` and
            :func:`~train_utils.metrics.semantic.semantic_measures`.
        curves: see :meth:`SaliencyMetrics.curves`.
        rows: the scores of each image, by its index.
        confusion: for classes: pixels by true (rows) and predicted class.
    """

    results: dict[str, Any]
    curves: dict[str, list[float]]
    rows: dict[int, dict[str, Any]]
    confusion: Tensor | None = None


class MapError(UserError):
    """A network's map of an image is not finite."""


def require_one_map(predictor: Predictor, name: object) -> None:
    """Refuse a network of several maps, unless they are background and object.

    Args:
        predictor: of the network.
        name: of its weights, for the message.

    Raises:
        UserError: it has several.
    """
    maps = predictor.model.config.out_ch
    if predictor.channel is None:
        advice = f"score it with {{metrics}} semantic {{num_classes}} {maps}"
        raise UserError(f"{name}: gives {maps} maps, not one", advice=advice)


def predicted(predictor: Predictor, loader: ImageLoader, stretch: bool) -> Iterator[Scored]:
    """Compute the maps of a network, resized to their masks.

    Args:
        predictor: of a network of one map, or of background and object.
        loader: of the images. If the network returns values that are not finite, the image is
            treated as one that cannot be loaded: a UserError is raised or put in ``loader.errors``.
        stretch: stretch each map by its own minimum and maximum, before it is rounded to 8 bits.

    Returns:
        Batches for :func:`evaluate`.

    Raises:
        UserError: the network has several maps.
    """
    require_one_map(predictor, predictor.origin)
    channel = 0 if predictor.detail else predictor.channel or 0
    return _scored(predictor, loader, lambda maps: to_levels(maps[channel], stretch))


def predicted_classes(predictor: Predictor, loader: ImageLoader, classes: int) -> Iterator[Scored]:
    """Compute the class maps of a network, resized to their masks.

    A pixel gets the most probable class or, with a network of one map, is object from 0.5 on.

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
        has = counted(maps, "map")
        problem = f"expected one map for each; the weights ({predictor.origin}) have {has}"
        raise UserError(problem, "num_classes", classes)
    return _scored(predictor, loader, most_probable)


def _scored(
    predictor: Predictor, loader: ImageLoader, convert: Callable[[Tensor], Tensor]
) -> Iterator[Scored]:
    """Batches whose maps H×W uint8 are what ``convert`` returns for probabilities C×H×W."""
    for images, masks, indices in loader:
        maps = _finite_maps(predictor, images, indices, loader)
        if predictor.detail:
            maps = _closer_maps(predictor, maps, indices, loader)
        if maps:
            yield Scored(
                [convert(predictor.resize(m, masks[i].shape[-2:])) for i, m in maps.items()],
                [masks[i][0].to(predictor.device, non_blocking=True) for i in maps],
                [indices[i] for i in maps],
            )


def _finite_maps(
    predictor: Predictor, images: Tensor, indices: list[int], loader: ImageLoader
) -> dict[int, Tensor]:
    """Probabilities by place in the batch; images whose maps are not finite become errors."""
    with suppress(UserError):
        return dict(enumerate(_probabilities(predictor, images, loader.batch_size)))

    def compute(place: int) -> Tensor:
        return _probabilities(predictor, images[[place]], loader.batch_size)[0]

    return _each(range(len(indices)), compute, indices, loader)


def _closer_maps(
    predictor: Predictor, maps: dict[int, Tensor], indices: list[int], loader: ImageLoader
) -> dict[int, Tensor]:
    """Maps of the object, 1×H×W of their images' sizes, after the predictor's second look."""

    def compute(place: int) -> Tensor:
        image = open_image(loader.dataset.pairs[indices[place]].image)
        own = maps[place][predictor.channel]
        saliency = predictor.resize(own, (image.height, image.width))
        return predictor.look_closer(image, saliency)[None].to(predictor.device)

    return _each(maps, compute, indices, loader)


def _each(
    places: Iterable[int],
    compute: Callable[[int], Tensor],
    indices: list[int],
    loader: ImageLoader,
) -> dict[int, Tensor]:
    """Maps by place in the batch; images whose map cannot be computed become errors."""
    maps: dict[int, Tensor] = {}
    errors: dict[int, UserError] = {}
    for place in places:
        try:
            maps[place] = compute(place)
        except UserError as error:
            path = loader.dataset.pairs[indices[place]].image
            errors[indices[place]] = MapError(f"{path}: {error}")
    loader.report(errors)
    return maps


@torch.inference_mode()
def _probabilities(predictor: Predictor, images: Tensor, batch_size: int) -> Tensor:
    # An incomplete batch is padded: rounding in convolutions depends on the batch size, and results
    # must not depend on the number of processes. On a CPU it is enough that each core has an image
    # of its own, as in a full batch.
    size = batch_size
    if predictor.device.type == "cpu":
        size = min(size, torch.get_num_threads())
    missing = max(0, size - len(images))
    full = torch.cat((images, images[:1].expand(missing, -1, -1, -1)))
    return predictor.probabilities(full)[: len(images)]


def evaluate(
    batches: Iterable[Scored],
    stretch: bool = True,
    structure: bool = False,
    device: torch.device | None = None,
    total: int | None = None,
    cut: int | None = None,
) -> Evaluation:
    """Score maps by every measure, over the batches of all ranks.

    Args:
        batches: of this rank, from :func:`predicted` or of existing maps.
        stretch: stretch each map by its own minimum and maximum first (published convention).
        structure: weighted F, relaxed boundary F, mBA and HCE too; threads compute them while the
            next maps are being computed.
        device: where ranks sum up; the CPU by default.
        total: how many batches there are, for the progress bar.
        cut: masks are soft: object where above this level of 255; the matting measures use the
            levels themselves.

    Returns:
        The scores of all ranks' images, on every rank.

    Raises:
        UserError: there is no map at all.
    """
    if structure and not find_spec("skimage"):
        raise UserError("all measures need scikit-image: pip install scikit-image")
    metrics = SaliencyMetrics(stretch)
    indices: list[int] = []
    soft: list[tuple[float, ...]] = []
    pending: deque[tuple[list[Tensor], list[Future[tuple[float, ...]]]]] = deque()

    def finish_one() -> None:
        histograms, futures = pending.popleft()
        metrics.update(histograms, [f.result() for f in futures] if structure else None)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for levels, masks, which in progress(batches, total):
            if cut is not None:
                soft += map(partial(matting_measures, stretch=stretch), levels, masks)
                masks = [(mask > cut).to(torch.uint8) for mask in masks]
            pairs = list(zip(levels, masks, strict=True))
            futures = [
                pool.submit(_structural, s.cpu().numpy(), m.cpu().numpy(), stretch)
                for s, m in (pairs if structure else ())
            ]
            pending.append(([histogram(s, m) for s, m in pairs], futures))
            indices += which
            if len(pending) > _IN_FLIGHT:
                finish_one()
        while pending:
            finish_one()
    own = {i: (row, extra) for i, row, extra in zip_longest(indices, metrics.rows, soft)}
    metrics.structure = structure  # even if this rank had no image
    return _sum_up(metrics, own, device or torch.device("cpu"))


def _sum_up(
    metrics: SaliencyMetrics, own: dict[int, tuple[Any, Any]], device: torch.device
) -> Evaluation:
    """The scores of all ranks' images, from this rank's: by index, the row of an image and, for
    soft masks, its matting measures.
    """
    rows = {index: row for part in gather(own) for index, row in part.items()}
    metrics.sums = sum_over_ranks(metrics.sums, device)
    if not metrics.sums[0]:
        raise UserError("nothing to score: no image could be read")
    names = PER_IMAGE if metrics.structure else PER_IMAGE[: -len(STRUCTURAL)]
    named = {}
    for index, (row, soft) in sorted(rows.items()):
        matting = zip(MATTING, soft, strict=True) if soft else ()
        named[index] = dict(zip(names, row, strict=False)) | dict(matting)
    results = metrics.results()
    for name in MATTING:
        if all(name in row for row in named.values()):
            results[name] = sum(row[name] for row in named.values()) / len(named)
    return Evaluation(results, metrics.curves(), named)


def progress(batches: Iterable[Scored], total: int | None) -> Iterable[Scored]:
    """The batches, with a progress bar on the main rank's terminal."""
    return tqdm(batches, "scoring", total, leave=False, disable=no_bar(), unit="batch")


def _structural(levels: np.ndarray, mask: np.ndarray, stretch: bool) -> tuple[float, ...]:
    """Like :func:`~.measures.structure.structural`, in one of many threads."""
    import cv2  # takes a while, and only this needs it

    from .measures.structure import structural

    cv2.setNumThreads(1)
    return structural(levels, mask, stretch)
