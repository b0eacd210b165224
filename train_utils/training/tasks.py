"""What a run learns: how its maps are scored while it trains, and how they are shown."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from src import Predictor
from src.pictures.classes import COLOURS, most_probable

from ..metrics.evaluate import evaluate, predicted, predicted_classes
from ..metrics.semantic import evaluate_classes

Scores = dict[str, float | int | list]


@dataclass(frozen=True)
class Saliency:
    """One map, object or not, scored as the papers do.

    ``told`` are the measures that the run prints; the first, the higher the better, chooses the
    best weights. ``logged`` are those in its log.
    """

    told: ClassVar = ("max_f", "mae")
    logged: ClassVar = ("mae", "max_f", "mean_f")

    def score(self, predictor: Predictor, loader: DataLoader) -> Scores:
        """Every measure over a set, of all ranks together."""
        maps = predicted(predictor, loader, stretch=True)
        return evaluate(maps, device=predictor.device, total=len(loader)).results

    def show_mask(self, mask: Tensor) -> Tensor:
        """A mask 1×H×W as a picture 3×H×W in [0, 1]."""
        return mask.float().expand(3, -1, -1)

    def show(self, probabilities: Tensor) -> Tensor:
        """What a network says, 1×H×W, as a picture 3×H×W in [0, 1]."""
        return probabilities.expand(3, -1, -1)


@dataclass(frozen=True)
class Classes:
    """A map for each class; the most probable one counts.

    Args:
        count: how many classes.
        ignore_index: the mask's value of pixels that count nowhere.
    """

    count: int
    ignore_index: int | None = None
    told: ClassVar = ("mean_iou", "pixel_accuracy")
    logged: ClassVar = ("mean_iou", "mean_pixel_accuracy", "pixel_accuracy")

    def score(self, predictor: Predictor, loader: DataLoader) -> Scores:
        """As :meth:`Saliency.score`."""
        maps = predicted_classes(predictor, loader, self.count)
        total = len(loader)
        return evaluate_classes(
            maps, self.count, self.ignore_index, predictor.device, total
        ).results

    def show_mask(self, mask: Tensor) -> Tensor:
        """As :meth:`Saliency.show_mask`, in the classes' colours."""
        return torch.from_numpy(COLOURS)[mask[0].long()].permute(2, 0, 1) / 255

    def show(self, probabilities: Tensor) -> Tensor:
        """As :meth:`Saliency.show`, in the classes' colours."""
        return self.show_mask(most_probable(probabilities)[None])
