"""MAE, the F-, E- and S-measures, from one histogram per image.

All that these measures need from an 8-bit map and a binary mask is 256 counts each for object and
background, in each of the four parts into which the S-measure divides an image. So the pixels are
read once, on the device; the rest is a few thousand float64 operations per image. Definitions:
MAE of Perazzi et al. 2012, F of Achanta et al. 2009 with β² = 0.3, S of Fan et al. 2017, E of Fan
et al. 2018; as in PySODMetrics, with which the tests compare them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BETA2 = 0.3
_EPS = torch.finfo(torch.float64).eps
_VALUES = torch.arange(256, dtype=torch.float64) / 255
STRUCTURAL = ("weighted_f", "relaxed_boundary_f", "mba", "hce")  # of structure.py, effort.py
PER_IMAGE = (
    *("mae", "max_f", "mean_f", "adaptive_f"),
    *("s_measure", "max_e", "mean_e", "adaptive_e"),
    *STRUCTURAL,
)


def histogram(saliency: Tensor, mask: Tensor) -> Tensor:
    """Counts of 8-bit levels outside and inside the object, in each quarter: int64 of 4×2×256.

    The quarters (above left, above right, below left, below right) meet at the object's centre of
    mass; with an empty mask, which has none, in the corner.

    Args:
        saliency: H×W uint8.
        mask: H×W, nonzero for the object.
    """
    if saliency.shape != mask.shape:
        raise ValueError(f"map is {tuple(saliency.shape)}, mask {tuple(mask.shape)}")
    objects = (mask != 0).to(torch.int16)  # a small type: memory traffic takes the time
    below, right = (_beyond_centre(objects.sum(1 - side)) for side in (0, 1))
    index = saliency.to(torch.int16).add_(objects, alpha=256)
    index.add_(below[:, None], alpha=1024).add_(right, alpha=512)
    return torch.bincount(index.flatten(), minlength=2048).view(4, 2, 256)


def _beyond_centre(counts: Tensor) -> Tensor:
    """Which rows (columns) lie beyond the one that holds the centre, as int16 {0, 1}."""
    places = torch.arange(len(counts), device=counts.device)
    total, count = (counts * places).sum(), counts.sum().clamp(min=1)
    # Rounded half to even, in integers: float32 is too coarse, and not every device has float64.
    whole = total.div(count, rounding_mode="floor")
    beyond = 2 * (total - whole * count) - count
    centre = whole + (beyond + whole % 2 > 0)
    return (places > centre).to(torch.int16)


def to_levels(saliency: Tensor, stretch: bool) -> Tensor:
    """Round a float map in [0, 1] to 8 bits, as if written to a file and read again.

    Args:
        saliency: H×W float.
        stretch: first stretch it to the full range by its own minimum and maximum, the published
            convention; a constant map stays as it is.
    """
    if stretch:
        low, high = saliency.aminmax()
        span = high - low
        saliency = torch.where(span > 0, (saliency - low) / span.clamp(min=1e-12), saliency)
    return saliency.mul(255).round().to(torch.uint8)


class SaliencyMetrics:
    """Running means over images; add them one by one or many at a time, on any device.

    Args:
        stretch: stretch each 8-bit map by its own minimum and maximum (as PySODMetrics does).

    An empty mask counts as in PySODMetrics: in MAE, S and E like any other; its precision, recall
    and every F are 0. ``results`` contains their number.
    """

    def __init__(self, stretch: bool = True) -> None:
        self.stretch = stretch
        self.structure = False
        self.rows: list[list[float]] = []  # of each image, in the order of PER_IMAGE
        # count, empty masks, means of the rows, then curves over 256 thresholds: P, R, F, E.
        self.sums = torch.zeros(2 + len(PER_IMAGE) + 4 * 256, dtype=torch.float64)

    def update(
        self, histograms: Sequence[Tensor], structure: Sequence[Sequence[float]] | None = None
    ) -> None:
        """Add images.

        Args:
            histograms: from :func:`histogram`.
            structure: the measures of STRUCTURAL of each, if they are needed.
        """
        counts = torch.stack(tuple(histograms)).cpu().double()
        here, curves = _measures(counts, self.stretch)
        self.structure = structure is not None
        structure = structure if self.structure else [(0.0,) * len(STRUCTURAL)] * len(counts)
        rows = torch.cat((here, torch.tensor(structure, dtype=torch.float64)), dim=1)
        self.rows += rows.tolist()
        empty = (counts[:, :, 1].sum((1, 2)) == 0).double()
        heads = torch.stack((torch.ones_like(empty), empty), dim=1)
        self.sums += torch.cat((heads, rows, curves.flatten(1)), dim=1).sum(0)

    def results(self) -> dict[str, float | int]:
        """The means so far, under the names of validation.py's JSON.

        ``max_f`` is the paper's: P and R averaged over the images, then F, then its maximum.
        ``max_f_per_image`` is PySODMetrics': F curves averaged, then the maximum. Measures that
        were not computed are absent.
        """
        count = self.sums[0].item()
        if not count:
            raise ValueError("no images were added")
        means = self.sums[2:] / count
        names = PER_IMAGE if self.structure else PER_IMAGE[: -len(STRUCTURAL)]
        mean = dict(zip(names, means.tolist(), strict=False))
        precision, recall, f, e = means[len(PER_IMAGE) :].view(4, 256)
        return {
            "images": int(count),
            "empty_masks": int(self.sums[1].item()),
            **mean,
            "max_f": f_measure(precision, recall).max().item(),
            "max_f_per_image": f.max().item(),
            "max_e": e.max().item(),
        }

    def curves(self) -> dict[str, list[float]]:
        """Mean precision and recall, and the resulting F, at thresholds from 255 to 0."""
        precision, recall = (self.sums[-1024:] / self.sums[0]).view(4, 256)[:2]
        f = f_measure(precision, recall)
        return {"precision": precision.tolist(), "recall": recall.tolist(), "f": f.tolist()}


def _measures(quarters: Tensor, stretch: bool) -> tuple[Tensor, Tensor]:
    """Each image's measures (N×8) and curves P, R, F, E (N×4×256), from histograms N×4×2×256."""
    background, foreground = quarters.sum(1).unbind(1)
    both = background + foreground
    pixels, objects = both.sum(-1, keepdim=True), foreground.sum(-1, keepdim=True)
    values = _levels(both > 0, stretch)
    mae = (background * values + foreground * (1 - values)).sum(-1) / pixels[:, 0]

    # Truncation to a threshold's bin, and its order of operations, are PySODMetrics'.
    bins = (values * 255).long().clamp(0, 255)
    hits, chosen = _at_least(foreground, bins), _at_least(both, bins)
    precision, recall = hits / chosen.clamp(min=1), hits / objects.clamp(min=1)
    f = f_measure(precision, recall)
    e = _e_measure(hits, chosen, objects, pixels)

    threshold = (2 * (both * values).sum(-1) / pixels[:, 0]).clamp(max=1)
    above = (values >= threshold[:, None]).double()
    hit, chosen = ((counts * above).sum(-1, keepdim=True) for counts in (foreground, both))
    adaptive_f = f_measure(hit / chosen.clamp(min=1), hit / objects.clamp(min=1))
    adaptive_e = _e_measure(hit, chosen, objects, pixels)

    s = _s_measure(quarters, values)
    of_f = f.amax(-1), f.mean(-1), adaptive_f[:, 0]
    of_e = e.amax(-1), e.mean(-1), adaptive_e[:, 0]
    rows = torch.stack((mae, *of_f, s, *of_e), dim=1)
    return rows, torch.stack((precision, recall, f, e), dim=1)


def _levels(present: Tensor, stretch: bool) -> Tensor:
    """The value of each 8-bit level in [0, 1], N×256 (0 where no pixel has it)."""
    values = _VALUES.expand(len(present), -1)
    if stretch:
        low = torch.where(present, values, 2.0).amin(-1, keepdim=True)
        high = torch.where(present, values, -1.0).amax(-1, keepdim=True)
        values = torch.where(high > low, (values - low) / (high - low), values)
    return torch.where(present, values, 0.0)


def _at_least(counts: Tensor, bins: Tensor) -> Tensor:
    """How many pixels lie in each threshold's bin or above, thresholds from 255 down to 0."""
    return torch.zeros_like(counts).scatter_add_(1, bins, counts).flip(-1).cumsum(-1)


def f_measure(precision: Tensor, recall: Tensor) -> Tensor:
    """F with β² = 0.3, and 0 where both are 0."""
    weighted = BETA2 * precision + recall
    return (1 + BETA2) * precision * recall / torch.where(weighted > 0, weighted, 1.0)


def _e_measure(hits: Tensor, chosen: Tensor, objects: Tensor, pixels: Tensor) -> Tensor:
    """Enhanced alignment of binary maps (Fan et al. 2018, eq. 3-5), from counts of pixels.

    Both maps are binary, so the alignment takes four values, for as many pixels each.
    """
    share, true_share = chosen / pixels, objects / pixels
    total = torch.zeros_like(hits)
    for inside, truth, count in (
        (1, 1, hits),
        (1, 0, chosen - hits),
        (0, 1, objects - hits),
        (0, 0, pixels - chosen - objects + hits),
    ):
        a, b = inside - share, truth - true_share
        aligned = 2 * a * b / (a**2 + b**2 + _EPS)
        total = total + (aligned + 1) ** 2 / 4 * count
    total = torch.where(objects == 0, pixels - chosen, total)
    total = torch.where(objects == pixels, chosen, total)
    return total / (pixels - 1 + _EPS)


def _s_measure(quarters: Tensor, values: Tensor) -> Tensor:
    """The structure measure (Fan et al. 2017, α = 0.5) of histograms N×4×2×256."""
    background, foreground = quarters.sum(1).unbind(1)
    objects, pixels = foreground.sum(-1), (background + foreground).sum(-1)
    share = objects / pixels
    alike = share * _object_likeness(foreground, values)
    alike = alike + (1 - share) * _object_likeness(background, 1 - values)
    region = _ssim(quarters, values[:, None]) * quarters.sum((2, 3)) / pixels[:, None]
    s = (0.5 * alike + 0.5 * region.sum(-1)).clamp(min=0)
    mean = ((background + foreground) * values).sum(-1) / pixels
    s = torch.where(objects == 0, 1 - mean, s)
    return torch.where(objects == pixels, mean, s)


def _object_likeness(counts: Tensor, values: Tensor) -> Tensor:
    """Eq. 5 of the paper: how near to 1 and to each other the values are; N×256 to N."""
    count = counts.sum(-1)
    mean = (counts * values).sum(-1) / count.clamp(min=1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(-1) / (count - 1).clamp(min=1)
    return 2 * mean / (mean**2 + 1 + variance.sqrt() + _EPS)


def _ssim(quarters: Tensor, values: Tensor) -> Tensor:
    """SSIM of each quarter N×4×2×256 with the mask (eq. 2-3); 1 where both are 0 everywhere."""
    pixels = quarters.sum((2, 3))
    both = quarters.sum(2)
    x = (both * values).sum(-1) / pixels.clamp(min=1)
    y = quarters[:, :, 1].sum(-1) / pixels.clamp(min=1)
    off = values - x[..., None]
    rest = pixels - 1 + _EPS
    x_variance = (both * off**2).sum(-1) / rest
    y_variance = pixels * y * (1 - y) / rest
    inside, outside = ((quarters[:, :, side] * off).sum(-1) for side in (1, 0))
    covariance = (inside * (1 - y) - outside * y) / rest
    alpha = 4 * x * y * covariance
    beta = (x**2 + y**2) * (x_variance + y_variance)
    return torch.where(alpha != 0, alpha / (beta + _EPS), (beta == 0).double())
