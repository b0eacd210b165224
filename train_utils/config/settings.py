"""All settings of a run together: filled in, checked, and as plain values."""

from argparse import ArgumentTypeError
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

from src import UserError
from src.words import counted

from ..training.losses import find_parts
from .data import DataSettings
from .network import NetworkSettings
from .recipe import RecipeSettings
from .run import RunSettings

# Defaults: freeze_bn is None only until resolved; without one of the others, settings are refused.
_FIXED = {"freeze_bn": False, "teacher": None, "final_loss": None, "final_epochs": None}
_PARTS = (DataSettings, NetworkSettings, RecipeSettings, RunSettings)


@dataclass(frozen=True, kw_only=True)
class Settings(RunSettings, RecipeSettings, NetworkSettings, DataSettings):  # fields: last first
    """All settings of a run. Defaults that depend on other settings are filled in.

    A resumed run must agree with its checkpoint in every setting that is not marked
    ``may_change``; ``fact`` names what is compared in place of a setting.

    Raises:
        UserError: a value is of the wrong kind, or settings contradict each other.

    Example:
        >>> settings = Settings(img_size=(160, 320), epochs=40)
        >>> settings.crop_size, settings.first_epochs
        ((144, 288), [0, 20])
    """

    def __post_init__(self) -> None:
        for name, declared in DECLARATIONS.items():
            value = getattr(self, name)
            if value not in (None, ()):  # these mean a default that depends on others
                try:
                    self._set(name, declared.read(value))
                except ArgumentTypeError as error:
                    raise UserError(str(error), name) from None
        if not self.loss:
            self._set("loss", "ce" if self.num_classes or self.classes else "bce")
        if self.overfit:  # no image twice in a batch, none cropped
            self._set("batch_size", min(self.batch_size, self.overfit))
            self._set("crop_size", self.img_size)
        for part in _PARTS:
            part._complete(self)
        for part in _PARTS:
            part._check(self)
        self._check_together()

    def _check_together(self) -> None:
        """Refuse settings of different groups that contradict each other."""
        find_parts(self.loss, self.num_classes or 1)
        losses = self.loss.split("+")
        if self.final_loss is not None:
            find_parts(self.final_loss, self.num_classes or 1, "final_loss")
            losses += self.final_loss.split("+")
        self._check_teacher()
        if self.patience and self.eval_interval >= self.epochs:
            problem = f"only one evaluation in {counted(self.epochs, 'epoch')}, at the end"
            advice = "lower {eval_interval}"
            raise UserError(problem, "patience", self.patience, advice)
        advice = "pass more epochs, fewer values of {img_size}, or a rising {grow_at}"
        self.check_starts(self.first_epochs, advice)
        weights, classes = self.class_weights, self.num_classes or 2
        if weights and not {"bce", "ce"} & set(losses):
            problem = f"only bce and ce use them, the loss is {'+'.join(losses)}"
            raise UserError(problem, "class_weights")
        balanced = weights == ("balanced",)
        if weights and not balanced and (len(weights) != classes or "balanced" in weights):
            raise UserError(f"expected balanced, or {classes} numbers", "class_weights")

    def _check_teacher(self) -> None:
        """Refuse settings that leave nothing to learn from a teacher, or from features."""
        if self.unlabelled and not self.teacher:
            problem = "images without masks have nothing to learn from"
            raise UserError(problem, "unlabelled", advice="pass {teacher} too")
        if self.unlabelled and self.feature_supervision:
            problem = "images without masks have no mask features"
            raise UserError(problem, "feature_supervision", advice="leave {unlabelled} out")
        if self.teacher and self.overfit:
            problem = "shows whether the masks can be learned"
            raise UserError(problem, "overfit", self.overfit, "leave {teacher} out")
        if self.teacher and not (self.teacher_weight or self.unlabelled):
            problem = "the teacher's maps would count for nothing"
            raise UserError(problem, "teacher_weight", 0, "raise it, or leave {teacher} out")

    def check_starts(self, starts: list[int], advice: str) -> None:
        """Refuse sizes that have no epoch of their own.

        Args:
            starts: the first epoch of each size, counted from 0.
            advice: what to do.
        """
        if any(a >= b for a, b in pairwise([*starts, self.epochs])):
            problem = (
                f"each size needs an epoch of its own, but they begin after {str(starts)[1:-1]}"
            )
            raise UserError(problem, "epochs", self.epochs, advice)

    @property
    def first_epochs(self) -> list[int]:
        """The first epoch of each ``img_size``, counted from 0."""
        return [round(share * self.epochs) for share in (0.0, *self.grow_at)]

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values by name, for ``args.json``."""
        return {name: _plain(getattr(self, name)) for name in DECLARATIONS}

    def record(self) -> dict[str, Any]:
        """The settings that a resumed run must share, for its checkpoints."""
        return {
            name: _plain(getattr(self, name))
            for name, declared in DECLARATIONS.items()
            if not (declared.may_change or declared.fact)
        }

    def default(self, name: str) -> Any:
        """The value of a setting if it were not given, as in :meth:`record`."""
        if name in _FIXED:
            return _FIXED[name]
        return _plain(getattr(replace(self, **{name: DECLARATIONS[name].default()}), name))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


DECLARATIONS = {field.name: field.metadata["declaration"] for field in fields(Settings)}
GROUPS = tuple(dict.fromkeys(declared.group for declared in DECLARATIONS.values()))
