"""The parts of a run that depend on its number of epochs: the learning rate schedule and the first
epoch of each image size. They are rebuilt if a resumed run has another number.
"""

from collections.abc import Sequence
from typing import Any

from src import UserError
from src.words import counted

from ...config import Settings
from ..optim import make_scheduler
from ..trainer import Trainer


def size_starts(settings: Settings, state: dict[str, Any] | None) -> list[int]:
    """The first epoch of each image size, counted from 0.

    Args:
        settings: of the run.
        state: the checkpoint to continue from, if any. If it was for another number of epochs, the
            sizes that it has reached stay, and later ones begin at their share of the new number.

    Raises:
        UserError: the checkpoint has done more epochs than requested, or too few remain for the
            sizes to come.
    """
    if state is None:
        return settings.first_epochs
    done, begun = state["epoch"], state["step"] > 0
    if settings.epochs < done + begun:
        verb = "has done" if not begun else "is in epoch"
        problem = f"the checkpoint {verb} {done + begun}"
        raise UserError(problem, "epochs", settings.epochs, "pass at least that many")
    before, starts = state["schedule"]["epochs"], state["schedule"]["starts"]
    if len(starts) != len(settings.img_size):  # other sizes than that run's: restore refuses them
        return settings.first_epochs
    if settings.epochs == before:
        return starts
    later = [max(start, done + begun) for start in settings.first_epochs]
    pairs = zip(starts, later, strict=True)
    starts = [old if old < done + begun or not old else new for old, new in pairs]
    settings.check_starts(starts, "pass more epochs")
    return starts


def plan_schedule(
    settings: Settings, steps: int, starts: Sequence[int], done: int = 0
) -> dict[str, Any]:
    """The schedule of a run, as checkpoints keep it.

    Args:
        settings: of the run.
        steps: optimizer steps per epoch.
        starts: first epoch of each size, see :func:`size_starts`.
        done: optimizer steps before the schedule begins.

    Returns:
        ``epochs``, ``starts``, ``warmup`` and ``total`` in optimizer steps, and ``final``, the
        step, counted from the run's first, from which the final loss applies; None: never.
    """
    epochs, final = settings.epochs, settings.final_epochs
    return {
        "epochs": epochs,
        "starts": [*starts],
        "warmup": round(settings.warmup_epochs * steps),
        "total": epochs * steps - done,
        "final": None if final is None else epochs * steps - max(1, round(final * steps)),
    }


def extend(settings: Settings, trainer: Trainer, steps: int, starts: Sequence[int]) -> str:
    """Rebuild the schedule of a resumed run for another number of epochs.

    Args:
        settings: of the run.
        trainer: restored from its checkpoint.
        steps, starts: as for :func:`plan_schedule`.

    Returns:
        A note for the user.
    """
    before, done = trainer.schedule["epochs"], trainer.updates
    for group in trainer.optimizer.param_groups:
        group["lr"] = group.pop("initial_lr")  # the peak, from which schedules begin
    peak = trainer.optimizer.param_groups[0]["lr"]
    plan = plan_schedule(settings, steps, starts, done)
    left = plan["total"]
    trainer.scheduler = make_scheduler(trainer.optimizer, plan["warmup"], left)
    trainer.schedule, trainer.updates_before, trainer.stale = plan, done, 0
    warmup = min(plan["warmup"], left // 2)
    rise = f"{warmup} of warm-up, then " if warmup else ""
    return (
        f"{counted(settings.epochs, 'epoch')} in place of {before}: the schedule is rebuilt for "
        f"the remaining {counted(left, 'step')}, {rise}a cosine from a learning rate of {peak:g}"
    )
