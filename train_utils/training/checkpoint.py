"""Checkpoints of a run: plain tensors, numbers and strings in one file.

The newest is ``last.pt``; the ones before it are ``last-1.pt``, ``last-2.pt`` …
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from src import UserError
from src.files import atomic_path, write_torch
from src.weights.storage import read_file

from ..config import DECLARATIONS, Settings

_PARTS = (
    *("model", "config", "flags", "optimizer", "scheduler", "scaler", "ema", "ema_updates"),
    *("epoch", "step", "bad_steps", "lr_taken", "best", "stale", "schedule", "updates_before"),
    *("mask_encoder", "sums", "rng"),
)

_SHOWN = {"start": "start weights ({pretrained} or {backbone})"}


def save_checkpoint(
    folder: Path, state: dict[str, Any], keep: int = 1, replace: bool = False
) -> None:
    """Write ``last.pt``; earlier checkpoints are renamed.

    If the process is killed at any moment, an intact checkpoint remains under one of the names.

    Args:
        folder: the run's.
        state: from :meth:`Trainer.state_dict`.
        keep: how many to keep, this one included.
        replace: overwrite the newest one, which is of the same step.
    """
    with atomic_path(folder / "last.pt") as temporary:
        write_torch(state, temporary)
        for age, path in [] if replace else reversed(list(_history(folder))):
            if age + 1 < keep:
                path.replace(_path(folder, age + 1))
            elif age:
                path.unlink()


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint, intact or not."""
    return any(_history(folder))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to continue from.

    Raises:
        UserError: it is missing, truncated, of an older version, or holds only weights.
    """
    refuse_folder(Path(path))
    state = dict(read_file(path))  # plain, as it may be written again
    if absent := [part for part in _PARTS if part not in state]:
        kind = "an older version's state" if "optimizer" in state else "weights, not the state"
        problem = f"holds {kind} of a run (no {', '.join(absent[:2])})"
        advice = "pass the last.pt of a run, or start from these weights with {pretrained}"
        raise UserError(problem, "resume", path, advice)
    return state


def refuse_folder(path: Path) -> None:
    """Raise an error if the path to resume from is a folder, not a checkpoint."""
    if path.is_dir():
        advice = "pass the last.pt in it, or {resume} auto and {output_dir}"
        raise UserError("is a folder", "resume", path, advice)


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run, and what is wrong with newer ones.

    Raises:
        UserError: there are checkpoints, and none of them is intact.
    """
    faults: list[str] = []
    for _, path in _history(folder):
        try:
            load_checkpoint(path)
        except UserError as error:
            faults.append(str(error))
        else:
            return path, faults
    if faults:
        problem = "\n  ".join([f"{folder}: no usable checkpoint found:", *faults])
        raise UserError(problem, advice="start a new run in another {output_dir}")
    return None, faults


def check_record(settings: Settings, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare a checkpoint's record with that of the run that continues it.

    Args:
        settings: of the run.
        before: the checkpoint's record. Settings that it lacks, if of an older version, count as
            their defaults; other facts that it lacks are not compared.
        now: :meth:`Settings.record`, and the facts that stand for other settings.

    Raises:
        UserError: they differ; the error lists all differences.
    """
    changes = []
    for name, value in now.items():
        is_setting = name in DECLARATIONS
        missing = settings.default(name) if is_setting and name not in before else value
        old = before.get(name, missing)
        if old != value:
            shown = f"{{{name}}}" if is_setting else _SHOWN.get(name, name)
            changes.append(f"{shown} was {old!r}, now {value!r}")
    if changes:
        raise UserError(
            "the checkpoint is from a run with different settings",
            "resume",
            settings.resume,
            advice=f"{'; '.join(changes)}; pass the settings that it was started with, or start a "
            "new run from its weights with {pretrained}",
        )


def _path(folder: Path, age: int) -> Path:
    return folder / (f"last-{age}.pt" if age else "last.pt")


def _history(folder: Path) -> Iterator[tuple[int, Path]]:
    """The checkpoints of a folder, newest first, and how many came after each."""
    ages = [int(path.stem[5:]) for path in folder.glob("last-*.pt") if path.stem[5:].isdigit()]
    for age in sorted({0, *ages}):
        if _path(folder, age).exists():
            yield age, _path(folder, age)
