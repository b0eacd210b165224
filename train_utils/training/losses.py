"""Losses of one map, sums of them, and deep supervision: the same sum on every map."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError
from src.words import counted

from ..data.pairs import Pair

_RADIUS, _SIGMA = 5, 1.5  # of the SSIM's Gaussian window, in pixels (Wang et al. 2004)
_C1, _C2 = 0.01**2, 0.03**2


@dataclass(eq=False)
class Target:
    """A mask in the forms that losses need, float32.

    Args:
        mask: N×1×H×W; in [0, 1] for one map, else class indices.
        classes: maps of the network; 1 for saliency.
        ignore_index: value of pixels that no loss counts; classes only.
        weights: of each class (background and object for one map) in ``bce`` and ``ce``.
        taught: N×C×H×W in [0, 1]: a teacher's maps of the images.
        share: N×1×1×1 in [0, 1]: weight of the teacher's maps in the target of each image. Where it
            is 1, the mask is not used.
    """

    mask: Tensor
    classes: int = 1
    ignore_index: int | None = None
    weights: Tensor | None = None
    taught: Tensor | None = None
    share: Tensor | None = None

    @cached_property
    def counts(self) -> Tensor:
        """N×1×H×W: 1, or 0 for pixels that no loss counts."""
        if self.classes == 1 or self.ignore_index is None:
            return torch.ones_like(self.mask, dtype=torch.float32)
        counts = self.mask.ne(self.ignore_index)
        return (counts if self.share is None else counts | self.share.eq(1)).float()

    @cached_property
    def index(self) -> Tensor:
        """Classes N×H×W int64, 0 where pixels don't count."""
        return (self.mask * self.counts).long()[:, 0]

    @cached_property
    def values(self) -> Tensor:
        """N×C×H×W in [0, 1]: the mask, or 1 in the map of each pixel's class; mixed with the maps
        of the teacher, if there is one.
        """
        if self.classes == 1:
            given = self.mask.float()
        else:
            hot = torch.arange(self.classes, device=self.mask.device).view(1, -1, 1, 1)
            given = (self.index[:, None] == hot) * self.counts
        if self.taught is None or self.share is None:
            return given
        return torch.lerp(given, self.taught, self.share) * self.counts

    @cached_property
    def pixel_weights(self) -> Tensor:
        """N×1×H×W: the weight of each pixel's class, 0 where it doesn't count."""
        if self.weights is None:
            return self.counts
        if self.classes == 1:
            return torch.lerp(self.weights[0], self.weights[1], self.values)
        if self.taught is not None:
            return (self.weights.view(1, -1, 1, 1) * self.values).sum(1, keepdim=True)
        return self.weights[self.index][:, None] * self.counts


def bce(logits: Tensor, target: Target) -> Tensor:
    """Σ w ℓ / Σ w over all pixels, where ℓ is their binary cross-entropy (Qin et al. 2020, equation
    2) and w the weight of their class, 1 by default.
    """
    if target.weights is None:
        return F.binary_cross_entropy_with_logits(logits, target.values)
    terms = F.binary_cross_entropy_with_logits(logits, target.values, reduction="none")
    return _mean(terms, target.pixel_weights)


def ce(logits: Tensor, target: Target) -> Tensor:
    """Σ w ℓ / Σ w over the pixels that count, where ℓ = −log softmax of their class's logit; for a
    mixed target, that of each class weighted by its share.
    """
    wanted = target.index if target.taught is None else target.values
    terms = F.cross_entropy(logits, wanted, reduction="none")[:, None]
    return _mean(terms, target.pixel_weights)


def _mean(terms: Tensor, weights: Tensor) -> Tensor:
    return (terms * weights).sum() / weights.sum().clamp(min=1e-6)


def dice(logits: Tensor, target: Target) -> Tensor:
    """1 − (2 Σpt + 1) / (Σp² + Σt² + 1) of each map, averaged (Milletari et al. 2016, V-Net)."""
    p, t = _flat(logits, target)
    return (1 - (2 * (p * t).sum(1) + 1) / (p.square().sum(1) + t.square().sum(1) + 1)).mean()


def iou(logits: Tensor, target: Target) -> Tensor:
    """1 − (Σpt + 1) / (Σ(p + t − pt) + 1) of each map, averaged (as Máttyus et al. 2017).

    It measures each object as a whole, so a small one counts as much as a large one.
    """
    p, t = _flat(logits, target)
    both = (p * t).sum(1)
    return (1 - (both + 1) / ((p + t).sum(1) - both + 1)).mean()


def ssim(logits: Tensor, target: Target) -> Tensor:
    """1 − the mean structural similarity of map and mask (Qin et al. 2019, BASNet, section 3.3): of
    Gaussian windows of 11×11 pixels, with 0 around the image.
    """
    p, t = _probabilities(logits, target), target.values
    n = p.shape[1]
    mean_p, mean_t, pp, tt, pt = _blur(torch.cat((p, t, p * p, t * t, p * t), dim=1)).split(n, 1)
    cross, squares = mean_p * mean_t, mean_p.square() + mean_t.square()
    covariance, variances = pt - cross, pp + tt - squares
    similar = (2 * cross + _C1) * (2 * covariance + _C2)
    return 1 - (similar / ((squares + _C1) * (variances + _C2))).mean()


def _blur(x: Tensor) -> Tensor:
    place = torch.arange(-_RADIUS, _RADIUS + 1, device=x.device, dtype=x.dtype)
    line = torch.exp(-place.square() / (2 * _SIGMA**2))
    line = (line / line.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, line, padding=(0, _RADIUS), groups=x.shape[1])
    return F.conv2d(x, line.mT, padding=(_RADIUS, 0), groups=x.shape[1])


def _probabilities(logits: Tensor, target: Target) -> Tensor:
    """Probabilities, 0 where pixels don't count, like their target."""
    p = logits.sigmoid() if target.classes == 1 else logits.softmax(1)
    return p * target.counts


def _flat(logits: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Probabilities and target, a row for each map of each image."""
    p = _probabilities(logits, target)
    return p.flatten(0, 1).flatten(1), target.values.flatten(0, 1).flatten(1)


PARTS: dict[str, Callable[[Tensor, Target], Tensor]] = {
    part.__name__: part for part in (bce, ce, dice, iou, ssim)
}


def find_parts(
    loss: str, classes: int = 1, setting: str = "loss"
) -> list[Callable[[Tensor, Target], Tensor]]:
    """The losses named in a sum.

    Args:
        loss: names of ``PARTS`` joined by ``+``.
        classes: number of the network's maps, 1 for saliency.
        setting: the one that names them, for the error.

    Raises:
        UserError: a loss is unknown, or for another number of maps.
    """
    wrong = "ce" if classes == 1 else "bce"
    known = [part for part in PARTS if part != wrong]
    for name in loss.split("+"):
        if name not in known:
            what = "one map" if classes == 1 else "classes"
            expected = f"expected {', '.join(known)}, or a sum of these"
            raise UserError(f"{name!r} is not a loss of {what}; {expected}", setting, loss)
    return [PARTS[name] for name in loss.split("+")]


class DeepSupervision(nn.Module):
    """ℒ = Σ w_m ℓ_m over the fused map and the side maps (Qin et al. 2020, equation 1).

    Args:
        weights: one per map, fused first; None: 1 for each, as published.
        loss: ℓ: names of ``PARTS`` joined by ``+``, such as ``bce+iou+ssim``; the published one is
            ``bce``. None is ``bce`` for one map and ``ce`` for classes.
        classes: number of the network's maps, 1 for saliency.
        ignore_index: value of pixels that no loss counts.
        class_weights: of each class (for one map: background, object) in ``bce`` and ``ce``.
        soft: masks hold levels 0 … 255, for targets between 0 and 1.

    Call with the list of logits that a network returns in training mode (each N×classes×h×w, any
    float type) and a mask N×1×H×W, {0, 1} or class indices; with a teacher, also with its maps
    N×classes×H×W in [0, 1] and their weights N×1×1×1 in the targets. Maps smaller than the mask are
    compared with its centre. Returns the total (a float32 scalar to call backward on) and the
    unweighted terms (float32, one per map, detached) for the log. Computed in float32 with logits,
    so safe under autocast.

    Raises:
        UserError: a loss is unknown or for another number of maps, or there are not as many weights
            as maps.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        loss: str | None = None,
        classes: int = 1,
        ignore_index: int | None = None,
        class_weights: Sequence[float] | None = None,
        soft: bool = False,
    ) -> None:
        super().__init__()
        self.weights = None if weights is None else tuple(weights)
        self.loss = loss or ("bce" if classes == 1 else "ce")
        self.parts = find_parts(self.loss, classes)
        self.soft = soft
        self.classes, self.ignore_index = classes, ignore_index
        given = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", given, persistent=False)

    def forward(
        self,
        logits: Sequence[Tensor],
        mask: Tensor,
        taught: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        weights = self.weights or (1.0,) * len(logits)
        if len(weights) != len(logits):
            text = f"{len(weights)} given for {counted(len(logits), 'map')}"
            raise UserError(text, "loss_weights")
        with torch.autocast(mask.device.type, enabled=False):
            target = self.target(_centre(mask, logits[0].shape[-2:]))
            if taught is not None:
                maps, target.share = taught
                target.taught = _centre(maps, logits[0].shape[-2:])
            terms = [_add(part(x.float(), target) for part in self.parts) for x in logits]
            total = _add(weight * term for weight, term in zip(weights, terms, strict=True))
            return total, torch.stack(terms).detach()

    def target(self, mask: Tensor) -> Target:
        """A mask N×1×H×W in the forms that losses need."""
        mask = mask.float() / 255 if self.soft else mask
        return Target(mask, self.classes, self.ignore_index, self.class_weights)


def _add(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _centre(mask: Tensor, size: Sequence[int]) -> Tensor:
    top, left = ((a - b) // 2 for a, b in zip(mask.shape[-2:], size, strict=True))
    return mask[..., top : top + size[0], left : left + size[1]]


def balanced_weights(
    pairs: Sequence[Pair],
    classes: int,
    ignore_index: int | None = None,
    cut: int | None = None,
) -> list[float]:
    """Class weights by median frequency balancing (Eigen & Fergus 2015, section 6.3.2).

    The weight of a class is median(f) / f, where f is its share of the pixels of those masks that
    contain it; it is 1 if no mask does.

    Args:
        pairs: whose masks are counted, except for those that cannot be read.
        classes: how many there are.
        ignore_index: pixels of this value are not counted.
        cut: masks are soft: object where above this level of 255.

    Returns:
        One weight for each class.
    """

    def count(pair: Pair) -> np.ndarray:
        with suppress(UserError):  # the run reports it when it reaches that mask
            mask = pair.read(pair.mask)
            if cut is not None:
                mask = (mask > cut).view(np.uint8)
            return np.bincount(mask.ravel(), minlength=classes)[:classes]
        return np.zeros(classes, dtype=int)

    with ThreadPoolExecutor() as pool:
        counts = np.stack(list(pool.map(count, pairs)))
    if ignore_index is not None:
        counts[:, ignore_index : ignore_index + 1] = 0  # if it is below ``classes`` at all
    pixels = (counts.sum(1, keepdims=True) * (counts > 0)).sum(0)
    present = pixels > 0
    share = counts.sum(0)[present] / pixels[present]
    weights = np.ones(classes)
    weights[present] = np.median(share) / share
    return weights.tolist()
