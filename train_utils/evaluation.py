"""Score a network on a data set: the one loop that training and validation.py share."""

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from src import Predictor

from .distributed import is_main, sum_over_ranks
from .metrics import SaliencyMetrics, histogram, to_levels


def evaluate(
    predictor: Predictor, loader: DataLoader, stretch: bool = True
) -> dict[str, float | int]:
    """MAE and F-measures over a set, each map scored at its mask's own size.

    Args:
        predictor: what turns prepared pictures into maps.
        loader: of :func:`~train_utils.loaders.eval_loader`, at the predictor's img_size.
        stretch: stretch each map by its own minimum and maximum first (published convention).

    Returns:
        The dict of :meth:`SaliencyMetrics.results`; under torchrun that of all ranks together.
    """
    metrics = SaliencyMetrics(stretch)
    bar = tqdm(
        loader,
        "scoring",
        leave=False,
        disable=None if is_main() else True,
        unit="batch",
    )
    for pictures, masks, _ in bar:
        # A batch that is not full is computed as a full one: convolutions round by its size, and
        # how many processes share the set must not show.
        full = pictures.repeat(-(-loader.batch_size // len(pictures)), 1, 1, 1)
        score_batch(predictor, metrics, full[: loader.batch_size], masks)
    metrics.sums = sum_over_ranks(metrics.sums, predictor.device)
    return metrics.results()


@torch.inference_mode()
def score_batch(
    predictor: Predictor,
    metrics: SaliencyMetrics,
    pictures: torch.Tensor,
    masks: list[torch.Tensor],
) -> None:
    """Add the maps of ``masks``, the first ones of ``pictures``, to ``metrics``."""
    histograms = []
    for saliency, mask in zip(predictor.maps(pictures), masks, strict=False):
        saliency = predictor.resize(saliency, mask.shape[-2:])
        levels = to_levels(saliency, metrics.stretch)
        histograms.append(histogram(levels, mask[0].to(predictor.device, non_blocking=True)))
    metrics.update(histograms)
