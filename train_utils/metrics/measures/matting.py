"""Matting measures: SAD, MSE and gradient error, as Rhemann et al. 2009 define them and the code of
Xu et al. 2017 (Deep Image Matting) computes them, over the whole image.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

MATTING = ("soft_mae", "sad", "mse", "gradient_error")
_SIGMA = 1.4  # of the Gaussian whose derivatives are the gradient's filters, in pixels
_SMALLEST = 0.01  # of its values that count, which sets how far the filters reach
_THOUSAND = 1000  # SAD and gradient error are printed in thousands


def matting_measures(levels: Tensor, mask: Tensor, stretch: bool = False) -> tuple[float, ...]:
    """Compare a map with the levels of its mask.

    Args:
        levels: the map, H×W uint8.
        mask: H×W uint8, levels 0 … 255.
        stretch: stretch the map by its own minimum and maximum first.

    Returns:
        In the order of ``MATTING``: the mean absolute error; the sum of absolute differences, in
        thousands; the mean squared error; and Σ (|∇map| − |∇mask|)², in thousands, of both
        stretched to 0 … 1. All are of levels between 0 and 1.

    Example:
        >>> half, full = (torch.full((20, 50), v, dtype=torch.uint8) for v in (0, 255))
        >>> matting_measures(half, full)
        (1.0, 1.0, 1.0, 0.0)
    """
    # On the CPU: not every device has float64, and each number would make a GPU wait.
    found, truth = levels.cpu().double() / 255, mask.cpu().double() / 255
    if stretch:
        found = _stretched(found)
    off = (found - truth).abs()
    both = torch.stack((_stretched(found), _stretched(truth)))
    slopes = _gradient(both)
    gradient = (slopes[0] - slopes[1]).square().sum() / _THOUSAND
    values = off.mean(), off.sum() / _THOUSAND, off.square().mean(), gradient
    return tuple(value.item() for value in values)


def _stretched(values: Tensor) -> Tensor:
    low, high = values.aminmax()
    return (values - low) / (high - low) if high > low else values


@lru_cache(maxsize=1)
def _filters() -> tuple[Tensor, Tensor]:
    """A Gaussian and its derivative, each with norm 1, so that their outer product has it too."""
    reach = math.ceil(
        _SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * _SIGMA * _SMALLEST))
    )
    place = torch.arange(-reach, reach + 1, dtype=torch.float64)
    smooth = torch.exp(-place.square() / (2 * _SIGMA**2))
    slope = -place * smooth
    return smooth / smooth.norm(), slope / slope.norm()


def _gradient(images: Tensor) -> Tensor:
    """The gradient magnitude of images N×H×W, whose edges are replicated."""
    smooth, slope = _filters()
    reach = len(smooth) // 2
    padded = F.pad(images[:, None], (reach,) * 4, mode="replicate")

    def along(line: Tensor, column: Tensor) -> Tensor:
        rows = F.conv2d(padded, line.view(1, 1, 1, -1))
        return F.conv2d(rows, column.view(1, 1, -1, 1))[:, 0]

    return torch.hypot(along(slope, smooth), along(smooth, slope))
