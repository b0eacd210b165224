"""Settings of the recipe: how long, with which loss, optimizer and augmentation."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from src import UserError

from ..kinds import (
    FRACTION,
    NATURAL,
    NUMBER,
    POSITIVE,
    SWITCH,
    TEXT,
    WEIGHTS,
    Kind,
    one_of,
    setting,
)
from ..training.losses import PARTS
from ..training.optim import OPTIMIZERS
from .group import Group

_recipe = partial(setting, "recipe")


@dataclass(frozen=True, kw_only=True)
class RecipeSettings(Group):
    """How to train."""

    epochs: int = _recipe(
        POSITIVE,
        "passes over the training split; on resuming, a different number rebuilds the schedule "
        "from there",
        360,
        may_change=True,
    )
    batch_size: int = _recipe(
        POSITIVE,
        "images per step and process; an incomplete last batch is dropped, with different images "
        "each epoch",
        16,
    )
    accum: int = _recipe(POSITIVE, "batches per optimizer step", 1)
    optimizer: str = _recipe(
        one_of(*OPTIMIZERS),
        "muon orthogonalises the updates of the kernels and needs fewer images; use it with the "
        "learning rates of adamw",
        "adamw",
    )
    lr: float = _recipe(NUMBER, "peak learning rate", 1e-3)
    warmup_epochs: float = _recipe(
        NUMBER,
        "epochs of rising learning rate (0.1: a tenth of one), at most half the run; then a cosine "
        "to the end",
        2.0,
    )
    weight_decay: float = _recipe(NUMBER, "weight decay, for all but norms and biases", 1e-4)
    clip_grad: float = _recipe(NUMBER, "largest gradient norm; 0 for none", 0.0)
    loss_weights: tuple[float, ...] | None = _recipe(
        NUMBER,
        "weight of each map: fused, then sides from fine to coarse (default: 1)",
        several=True,
    )
    loss: str = _recipe(
        TEXT,
        f"loss of each map: {', '.join(PARTS)}, or a sum such as bce+iou+ssim (default: bce, the "
        "published one; ce with --num-classes)",
        "",
    )
    final_loss: str | None = _recipe(
        TEXT, "loss of each map in the last --final-epochs of the run, in place of --loss"
    )
    final_epochs: float | None = _recipe(
        NUMBER, "epochs at the end of the run with --final-loss (0.5: half of the last one)"
    )
    class_weights: tuple[float | str, ...] | None = _recipe(
        Kind(float, "X", 0, words=("balanced",)),
        "weight of each class in bce and ce (without --num-classes: background, object), or "
        "balanced, the median frequency balancing of the training masks (default: none)",
        several=True,
    )
    augment: str = _recipe(
        one_of("basic", "colour", "strong"),
        "basic: crop and flip, as published; colour: also brightness, contrast, saturation, grey; "
        "strong: also scale, aspect, blur, noise, JPEG artefacts and pasted objects",
        "basic",
    )
    ema: float = _recipe(
        FRACTION,
        "decay of the moving average of the weights; --ema alone means 0.999 (default: no average)",
        0.0,
        alone=0.999,
    )
    seed: int = _recipe(NATURAL, "random seed of weights, order and crops", 0)
    sync_bn: bool = _recipe(SWITCH, "batch norm over the batches of all GPUs together", False)
    freeze_bn: bool | None = _recipe(
        SWITCH, "batch norm keeps and uses its statistics (default: with --pretrained)"
    )
    freeze_encoder: int | str = _recipe(
        Kind(int, "EPOCHS", 0, 2**31, words=("all",)),
        "freeze the encoder for the first EPOCHS; without a number, for the whole run (default: "
        "not frozen)",
        0,
        alone="all",
    )
    patience: int | None = _recipe(
        POSITIVE,
        "stop after this many evaluations in a row without a better score",
        may_change=True,
    )
    teacher: Path | None = _recipe(
        WEIGHTS,
        "also learn from the maps of these weights, by name or in any supported format",
        fact="teacher",
    )
    teacher_weight: float | None = _recipe(
        NUMBER,
        "share of the teacher's maps in the targets, from 0 to 1; the rest is the masks' (default: "
        "0.5)",
    )
    feature_supervision: bool = _recipe(
        SWITCH,
        "train a GT encoder on the masks first, then pull the features behind each side map "
        "towards those of the encoder (IS-Net's intermediate supervision)",
        False,
    )

    def _complete(self) -> None:
        if self.teacher and self.teacher_weight is None:
            self._set("teacher_weight", 0.5)

    def _check(self) -> None:
        if self.final_loss is not None and self.final_epochs is None:
            problem, advice = "the number of its epochs is missing", "pass {final_epochs} too"
            raise UserError(problem, "final_loss", self.final_loss, advice)
        if self.final_epochs is not None and self.final_loss is None:
            problem, advice = "the loss for them is missing", "pass {final_loss} too"
            raise UserError(problem, "final_epochs", f"{self.final_epochs:g}", advice)
        if self.final_epochs is not None and not 0 < self.final_epochs <= self.epochs:
            problem = f"expected more than 0 and at most the run's {self.epochs}"
            raise UserError(problem, "final_epochs", f"{self.final_epochs:g}")
        if self.teacher_weight is not None and not self.teacher:
            raise UserError("there is no teacher", "teacher_weight", advice="pass {teacher} too")
        if (self.teacher_weight or 0) > 1:
            raise UserError("expected a number from 0 to 1", "teacher_weight", self.teacher_weight)
