"""A whole run in one file: plain tensors, numbers and strings, written whole or not at all.

The newest is ``last.pt``; the ones before it are ``last-1.pt``, ``last-2.pt`` …
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src import UserError
from src.files import atomic_path, write_torch
from src.weights.storage import read_file

_PARTS = (
    *("model", "config", "flags", "optimizer", "scheduler", "scaler", "ema", "ema_updates"),
    *("epoch", "step", "bad_steps", "best", "sums", "rng"),
)


def save_checkpoint(folder: Path, state: dict[str, Any], keep: int = 1) -> None:
    """Write what :meth:`Trainer.state_dict` gives as ``last.pt``; the ones before it move back.

    A kill at any moment leaves a whole checkpoint under one of the names.

    Args:
        folder: the run's.
        state: of the trainer.
        keep: how many to leave there, this one included.
    """
    with atomic_path(folder / "last.pt") as temporary:
        write_torch(state, temporary)
        for age, path in reversed(list(_history(folder))):
            if age + 1 < keep:
                path.replace(_name(folder, age + 1))
            elif age:
                path.unlink()


def has_checkpoint(folder: Path) -> bool:
    """Whether there is one, whole or not."""
    return any(_history(folder))


def _name(folder: Path, age: int) -> Path:
    return folder / (f"last-{age}.pt" if age else "last.pt")


def _history(folder: Path) -> Iterator[tuple[int, Path]]:
    """The checkpoints of a folder and how many came after each, from the newest on."""
    ages = [int(path.stem[5:]) for path in folder.glob("last-*.pt") if path.stem[5:].isdigit()]
    for age in sorted({0, *ages}):
        if _name(folder, age).exists():
            yield age, _name(folder, age)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to go on from.

    Raises:
        UserError: missing, torn, or weights alone, from which no run can be resumed.
    """
    if Path(path).is_dir():
        raise UserError(
            f"--resume {path}: is a folder; give its last.pt, or auto with --output-dir"
        )
    state = read_file(path)
    absent = [part for part in _PARTS if part not in state]
    if absent:
        raise UserError(
            f"--resume {path}: holds weights, not a run's state (no {', '.join(absent[:2])}); go "
            "on from its last.pt, or start from these weights by --pretrained"
        )
    return state


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and what was wrong with those passed over for it.

    Raises:
        UserError: there are checkpoints, and none of them is whole.
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
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise UserError(
            f"{folder}: no checkpoint there can be gone on from:{listed}\n"
            "start a new run in another --output-dir"
        )
    return None, faults
