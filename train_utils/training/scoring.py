"""Evaluate a run's networks and keep the best weights."""

import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from src import Predictor, UserError, save_model
from src.device import amp_name
from src.pictures.classes import COLOURS, most_probable

from ..data.dataset import SegmentationDataset
from ..data.loaders import Loader
from ..distributed import gather, is_first, is_main, share_buffers
from ..metrics.measures.matting import MATTING
from .records import Records
from .trainer import Trainer


class Diverged(UserError):
    """The weights, or too many steps in a row, are not finite. Checkpoints stay as they were."""


@dataclass(frozen=True)
class Task:
    """What a network learns: an object's map, or a map for each class.

    Args:
        classes: how many; None for object and background, one map.
        ignore_index: the mask value to ignore; of classes only.
        cut: masks are soft, and scored as object where above this level of 255.
    """

    classes: int | None = None
    ignore_index: int | None = None
    cut: int | None = None

    @property
    def shown(self) -> tuple[str, ...]:
        """The measures that a run prints. The higher the first one, the better the weights."""
        return ("mean_iou", "pixel_accuracy") if self.classes else ("max_f", "mae")

    @property
    def logged(self) -> tuple[str, ...]:
        """The measures in a run's log."""
        if self.classes:
            return ("mean_iou", "mean_pixel_accuracy", "pixel_accuracy")
        return ("mae", "max_f", "mean_f", *(MATTING if self.cut is not None else ()))

    def score(self, predictor: Predictor, loader: Loader[SegmentationDataset]) -> dict[str, Any]:
        """Every measure over a set, from all ranks together."""
        # Imported here, as they import OpenCV, which the command line does without.
        from ..metrics.evaluate import evaluate, predicted, predicted_classes
        from ..metrics.semantic import evaluate_classes

        device, total = predictor.device, len(loader)
        if self.classes is None:
            maps = predicted(predictor, loader, stretch=True)
            return evaluate(maps, device=device, total=total, cut=self.cut).results
        maps = predicted_classes(predictor, loader, self.classes)
        return evaluate_classes(maps, self.classes, self.ignore_index, device, total).results

    def draw_mask(self, mask: Tensor) -> Tensor:
        """A mask 1×H×W as an image 3×H×W in [0, 1]; classes in their colours."""
        if self.classes is None:
            white = 1 if self.cut is None else 255
            return (mask.float() / white).expand(3, -1, -1)
        return torch.from_numpy(COLOURS)[mask[0].long()].permute(2, 0, 1) / 255

    def draw_map(self, probabilities: Tensor) -> Tensor:
        """Probabilities C×H×W as an image 3×H×W in [0, 1]; classes in their colours."""
        if self.classes is None:
            return probabilities.expand(3, -1, -1)
        return self.draw_mask(most_probable(probabilities)[None])


def require_finite(trainer: Trainer) -> None:
    """Raise :class:`Diverged` if the weights are not finite."""
    if not trainer.is_finite():
        raise Diverged(
            f"epoch {trainer.epoch + 1}, batch {trainer.batches_done}: weights that are not "
            f"finite, at a learning rate of {trainer.last_lr:.3g}; checkpoints stay as they were"
        )


def evaluate_networks(
    trainer: Trainer,
    test: Loader[SegmentationDataset],
    folder: Path,
    task: Task,
    records: Records | None,
) -> dict[str, Any]:
    """Score the network and its average, keep the best weights, draw samples."""
    require_finite(trainer)
    epoch = trainer.epoch - 1  # counted from 0
    test.sampler.epoch = epoch
    side = test.dataset.transform.at(epoch).img_size
    predictors, scores = {}, {}
    for prefix, network in trainer.networks.items():
        share_buffers(network)
        network.img_size = side
        predictors[prefix] = Predictor(network, device=trainer.device, amp=amp_name(trainer.dtype))
        scores[prefix] = _score(task, predictors[prefix], test)
    chosen = "" if trainer.ema is None else "ema_"
    if records:
        samples = _samples(predictors[chosen], test.dataset, epoch, task)
        records.samples(samples, trainer.epoch, trainer.updates)
    values = {name: scores[chosen][name] for name in task.shown}
    if not all(map(math.isfinite, values.values())):
        raise Diverged(
            f"epoch {trainer.epoch}: scores that are not finite; checkpoints stay as they were"
        )
    if values[task.shown[0]] > trainer.best.get(task.shown[0], -1.0):
        trainer.best, trainer.stale = {**values, "epoch": trainer.epoch}, 0
        if is_main():
            best, name = trainer.networks[chosen], folder / "best.pt"
            save_model(best, name, epoch=trainer.epoch, scores=scores[chosen])
    else:
        trainer.stale += 1
    return {prefix + name: scores[prefix][name] for prefix in scores for name in task.logged}


def _score(task: Task, predictor: Predictor, test: Loader[SegmentationDataset]) -> dict[str, Any]:
    """The scores over all readable images; the others are reported."""
    from ..metrics.evaluate import MapError

    test.errors.clear()
    scores, failure = {}, None
    try:
        scores = task.score(predictor, test)
    except UserError as error:  # no image at all; the same on all ranks
        failure = error
    errors = {index: reason for part in gather(test.errors) for index, reason in part.items()}
    for reason in errors.values():
        if isinstance(reason, MapError):
            raise reason
        if is_main() and is_first(f"scores: {reason.args[0]}"):
            tqdm.write(f"{reason.args[0]}: left out of the scores", file=sys.stderr)
    if failure:
        raise failure
    return scores


def _samples(
    predictor: Predictor, dataset: SegmentationDataset, epoch: int, task: Task
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Up to eight images, spread over the set, with their masks and maps."""
    indices = range(0, len(dataset), max(1, len(dataset) // 8))[:8]
    samples = []
    for index in indices:
        with suppress(UserError):  # scoring has reported it
            samples.append(dataset[epoch, index])
    if not samples:
        return iter(())
    images, masks, _ = zip(*samples, strict=True)
    maps = predictor.probabilities(torch.stack(images)).cpu()
    return zip(images, map(task.draw_mask, masks), map(task.draw_map, maps), strict=True)
