"""Settings of the device, and of the run's folder: what a run reads, writes and keeps."""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from src import UserError
from src.device import AMP_CHOICES

from ..kinds import NATURAL, PATH, POSITIVE, SWITCH, TEXT, Kind, one_of, setting
from .group import Group

TRACKERS = "tensorboard", "wandb", "mlflow"

_device = partial(setting, "device")
_run = partial(setting, "run", may_change=True)


def default_workers() -> int:
    """Eight with a GPU, else one: a CPU that trains has little time left for loading."""
    return min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 1


@dataclass(frozen=True, kw_only=True)
class RunSettings(Group):
    """Where to compute, and what to keep."""

    device: str = _device(TEXT, "auto, cpu, cuda, cuda:1, mps", "auto", fact="device")
    amp: str = _device(
        one_of(*AMP_CHOICES), "precision; auto: bf16 where it is fast", "auto", fact="precision"
    )
    workers: int = _device(
        NATURAL, "processes that load images; 0: the main one", default_workers, may_change=True
    )
    compile: bool = _device(SWITCH, "build the step with torch.compile", False, may_change=True)
    checkpoint_activations: bool = _device(
        SWITCH, "recompute stages for the gradient: less memory, more time", False, may_change=True
    )

    output_dir: Path | None = _run(PATH, "the run's folder (default: runs/MODEL-1, -2, ...)")
    resume: str | None = _run(
        Kind(str, "PATH"),
        "continue from a last.pt; auto: from the newest intact checkpoint in --output-dir (by "
        "default of the newest run of this --model), or start a new run if there is none",
    )
    tracker: tuple[str, ...] = _run(
        one_of(*TRACKERS, "none"),
        "where losses, scores and sample sheets go besides log.csv; wandb and mlflow need their "
        "packages (pip install '.[track]') and take project, server and offline mode from their "
        "own environment variables",
        ("tensorboard",),
        several=True,
    )
    eval_interval: int = _run(POSITIVE, "epochs between evaluations", 10)
    save_every: int = _run(
        NATURAL, "optimizer steps between checkpoints; 0: only after each epoch", 0
    )
    keep: int = _run(POSITIVE, "checkpoints to keep: last.pt, last-1.pt before it, ...", 2)

    def _check(self) -> None:
        if "none" in self.tracker and len(self.tracker) > 1:
            raise UserError(
                "none cannot be combined with others", "tracker", " ".join(self.tracker)
            )
