"""MAE and the F-measures, from one histogram per picture.

A map of 8 bits and a binary mask say all that these measures need in 2×256 counts, so the pixels
are read once, on the device, for all thresholds together; the rest is a few hundred float64
operations per picture. Definitions: MAE of Perazzi et al. 2012, F of Achanta et al. 2009 with
β² = 0.3; as in PySODMetrics, which the tests compare with.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BETA2 = 0.3
_LEVELS = torch.arange(256, dtype=torch.float64)


def histogram(saliency: Tensor, mask: Tensor) -> Tensor:
    """Counts of 8-bit levels outside and inside the object: int64 of 2×256.

    Args:
        saliency: H×W uint8.
        mask: H×W, nonzero for the object.
    """
    if saliency.shape != mask.shape:
        raise ValueError(f"map is {tuple(saliency.shape)}, mask {tuple(mask.shape)}")
    index = saliency.to(torch.int32) + 256 * (mask != 0)
    return torch.bincount(index.flatten(), minlength=512).view(2, 256)


def to_levels(saliency: Tensor, stretch: bool) -> Tensor:
    """A float map in [0, 1] to 8 bits, rounded, as if written to a file and read again.

    Args:
        saliency: H×W float.
        stretch: first to its full range by its own minimum and maximum, the published convention;
            a constant map stays as it is.
    """
    if stretch:
        low, high = saliency.aminmax()
        span = high - low
        # No branch on a tensor's value, which would make a GPU wait.
        saliency = torch.where(span > 0, (saliency - low) / span.clamp(min=1e-12), saliency)
    return saliency.mul(255).round().to(torch.uint8)


class SaliencyMetrics:
    """Running means over pictures; add them one by one or many at a time, on any device.

    Args:
        stretch: stretch each 8-bit map by its own minimum and maximum (as PySODMetrics does).

    An empty mask counts as in PySODMetrics: its MAE as any other's, its precision, recall and F
    as 0. ``results`` tells how many there were.
    """

    def __init__(self, stretch: bool = True) -> None:
        self.stretch = stretch
        # count, empty masks, MAE, adaptive F, then curves over 256 thresholds: P, R, F.
        self.sums = torch.zeros(4 + 3 * 256, dtype=torch.float64)

    def update(self, histograms: Sequence[Tensor]) -> None:
        """Add pictures by their :func:`histogram`."""
        counts = torch.stack(tuple(histograms)).cpu().double()
        mae, adaptive, precision, recall, f = _measures(counts, self.stretch)
        empty = (counts[:, 1].sum(-1) == 0).double()
        heads = torch.stack((torch.ones_like(mae), empty, mae, adaptive), dim=1)
        self.sums += torch.cat((heads, precision, recall, f), dim=1).sum(0)

    def results(self) -> dict[str, float | int]:
        """The means so far, under the names of validation.py's JSON.

        ``max_f`` is the paper's: P and R averaged over the pictures, then F, then its maximum.
        ``max_f_per_image`` is PySODMetrics': F curves averaged, then the maximum.
        """
        count = self.sums[0].item()
        if not count:
            raise ValueError("no pictures were added")
        means = self.sums / count
        precision, recall, f = means[4:].view(3, 256)
        return {
            "images": int(count),
            "empty_masks": int(self.sums[1].item()),
            "mae": means[2].item(),
            "max_f": _f_measure(precision, recall).max().item(),
            "max_f_per_image": f.max().item(),
            "mean_f": f.mean().item(),
            "adaptive_f": means[3].item(),
        }


def _measures(counts: Tensor, stretch: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """MAE (N), adaptive F (N), and P, R, F at 256 thresholds (N×256) of histograms N×2×256."""
    background, foreground = counts.unbind(1)
    both = background + foreground
    pixels = both.sum(-1)
    values = _levels(both > 0, stretch)
    mae = (background * values + foreground * (1 - values)).sum(-1) / pixels

    # Truncation to a threshold's bin, and its order of operations, are PySODMetrics'.
    bins = (values * 255).long().clamp(0, 255)
    hits = _at_least(foreground, bins)
    chosen = _at_least(both, bins)
    objects = foreground.sum(-1, keepdim=True)
    precision = hits / chosen.clamp(min=1)
    recall = hits / objects.clamp(min=1)

    threshold = (2 * (both * values).sum(-1) / pixels).clamp(max=1)
    above = (values >= threshold[:, None]).double()
    hit = (foreground * above).sum(-1)
    adaptive = _f_measure(
        hit / (both * above).sum(-1).clamp(min=1), hit / objects[:, 0].clamp(min=1)
    )
    return mae, adaptive, precision, recall, _f_measure(precision, recall)


def _levels(present: Tensor, stretch: bool) -> Tensor:
    """What each 8-bit level stands for in [0, 1], N×256 (0 where no pixel has it)."""
    values = (_LEVELS / 255).expand(len(present), -1)
    if stretch:
        low = torch.where(present, values, 2.0).amin(-1, keepdim=True)
        high = torch.where(present, values, -1.0).amax(-1, keepdim=True)
        values = torch.where(high > low, (values - low) / (high - low), values)
    return torch.where(present, values, 0.0)


def _at_least(counts: Tensor, bins: Tensor) -> Tensor:
    """How many pixels lie in each threshold's bin or above, thresholds from 255 down to 0."""
    return torch.zeros_like(counts).scatter_add_(1, bins, counts).flip(-1).cumsum(-1)


def _f_measure(precision: Tensor, recall: Tensor) -> Tensor:
    weighted = BETA2 * precision + recall
    return (1 + BETA2) * precision * recall / torch.where(weighted > 0, weighted, 1.0)
