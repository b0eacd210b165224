"""Deep supervision: the same loss on the fused map and every side map."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError


def map_names(count: int) -> list[str]:
    """What the terms of the loss are called in logs: ``fused``, ``side1`` (finest) …"""
    return ["fused", *(f"side{i}" for i in range(1, count))]


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Mean pixel-wise binary cross-entropy (Qin et al. 2020, equation 2)."""
    return F.binary_cross_entropy_with_logits(logits, target)


def iou(logits: Tensor, target: Tensor) -> Tensor:
    """1 − (Σpt + 1) / (Σ(p + t − pt) + 1) of each map, averaged (as Máttyus et al. 2017).

    It looks at the object as a whole, so a small one counts as much as a large one.
    """
    p = logits.sigmoid().flatten(1)
    target = target.flatten(1)
    both = (p * target).sum(1)
    return (1 - (both + 1) / ((p + target).sum(1) - both + 1)).mean()


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], ...]] = {
    "bce": (bce,),
    "bce+iou": (bce, iou),
}


class DeepSupervision(nn.Module):
    """ℒ = Σ w_m ℓ_m over the fused map and the side maps (Qin et al. 2020, equation 1).

    Args:
        weights: one per map, fused first; 1 for each, as published, where None.
        loss: ℓ, a name in ``LOSSES``; the published one is ``bce``.

    Call with the list of logits that a network gives in training mode (each N×C×H×W, any float
    type) and a target N×C×H×W in [0, 1]. Returns the total (a float32 scalar to call backward on)
    and the unweighted terms (float32, one per map, detached) for the log. Computed in float32 with
    logits, so safe under autocast.

    Raises:
        UserError: another number of weights than of maps.
    """

    def __init__(self, weights: Sequence[float] | None = None, loss: str = "bce") -> None:
        super().__init__()
        self.weights = None if weights is None else tuple(weights)
        self.parts = LOSSES[loss]

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.weights or (1.0,) * len(logits)
        if len(weights) != len(logits):
            raise UserError(f"{len(weights)} loss weights for {len(logits)} maps; give one per map")
        with torch.autocast(target.device.type, enabled=False):
            target = target.float()
            terms = [sum(part(x.float(), target) for part in self.parts) for x in logits]
            total = sum(weight * term for weight, term in zip(weights, terms, strict=True))
            return total, torch.stack(terms).detach()
