"""Deep supervision: binary cross-entropy on the fused map and every side map."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.errors import UserError


def map_names(count: int) -> list[str]:
    """What the terms of the loss are called in logs: ``fused``, ``side1`` (finest) …"""
    return ["fused", *(f"side{i}" for i in range(1, count))]


class DeepSupervisionBCE(nn.Module):
    """ℒ = Σ w_m ℓ_m over the fused map and the side maps, ℓ the mean pixel-wise binary
    cross-entropy (Qin et al. 2020, equations 1 and 2).

    Args:
        weights: one per map, fused first; 1 for each, as published, where None.

    Call with the list of logits that a network gives in training mode (each N×C×H×W, any float
    type) and a target N×C×H×W in [0, 1]. Returns the total (a float32 scalar to call backward on)
    and the unweighted terms (float32, one per map, detached) for the log. Computed in float32 with
    logits, so safe under autocast.

    Raises:
        UserError: another number of weights than of maps.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.weights = None if weights is None else tuple(weights)

    def forward(self, logits: Sequence[Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        weights = self.weights or (1.0,) * len(logits)
        if len(weights) != len(logits):
            raise UserError(f"{len(weights)} loss weights for {len(logits)} maps; give one per map")
        with torch.autocast(target.device.type, enabled=False):
            target = target.float()
            terms = torch.stack(
                [F.binary_cross_entropy_with_logits(x.float(), target) for x in logits]
            )
            total = sum(weight * term for weight, term in zip(weights, terms, strict=True))
            return total, terms.detach()
