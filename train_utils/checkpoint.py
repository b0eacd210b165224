"""A whole run in one file: plain tensors, numbers and strings, written whole or not at all."""

from pathlib import Path
from typing import Any

from src import UserError
from src.files import save_torch
from src.weights import read_file

_PARTS = ("model", "config", "optimizer", "scheduler", "scaler", "epoch", "step", "best", "flags")


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write what :meth:`Trainer.state_dict` gives; ``torch.load(weights_only=True)`` reads it."""
    save_torch(state, path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to go on from.

    Raises:
        UserError: missing, torn, or weights alone, from which no run can be resumed.
    """
    state = read_file(path)
    absent = [part for part in _PARTS if part not in state]
    if absent:
        raise UserError(
            f"--resume {path}: holds no {', '.join(absent)}; a run resumes from its last.pt "
            "(to start from weights alone, give them as --pretrained)"
        )
    return state
