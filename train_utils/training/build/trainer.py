"""The trainer of a run, what its result depends on, and how it continues from a checkpoint."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src import Network
from src.weights.load import find_weights
from src.weights.named import PUBLISHED
from src.weights.storage import FOLDER, find_file

from ...config import Settings
from ...data.dataset import SegmentationDataset
from ...distributed import is_main, world_size
from ..checkpoint import check_record, save_checkpoint
from ..optim import make_ema, make_optimizer, make_scaler, make_scheduler
from ..trainer import Trainer
from .data import describe


def make_record(
    settings: Settings,
    state: dict[str, Any] | None,
    train_set: SegmentationDataset,
    test_set: SegmentationDataset,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """All that the result of a run depends on: settings, and facts that stand for others of them.

    Checkpoints keep it under the names ``flags`` and, for the data sets, ``pictures``.
    """
    return settings.record() | {
        "pictures": [describe(train_set, "to train"), describe(test_set, "to test")],
        "processes": world_size(),
        "precision": str(dtype),
        "device": device.type,
        "start": start_weights(settings, state),
    }


def start_weights(settings: Settings, state: dict[str, Any] | None) -> str | None:
    """What identifies the weights that a run started from: the sha256 of their file, the
    md5 of a published one, or ``imagenet``; None for random ones.

    Who resumes from a checkpoint's path need not name them again: then they are the checkpoint's.
    """
    source = settings.pretrained or settings.backbone
    if source is None and state and settings.resume not in (None, "auto"):
        return state["flags"].get("start")
    if source is None or source == "imagenet":
        return source
    path = find_weights(source)
    if (entry := PUBLISHED.get(str(source))) and path == entry.converted:
        return f"md5 {entry.md5}"  # of its source: made anew, the file differs
    path = find_file(path)  # of a run's folder, which grows
    digest = hashlib.sha256()
    for file in [path / name for name in FOLDER] if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return f"sha256 {digest.hexdigest()}"


def make_trainer(
    settings: Settings,
    model: Network,
    loss: nn.Module,
    *,
    steps: int,
    dtype: torch.dtype,
    record: dict[str, Any],
) -> Trainer:
    """The network with optimizer, schedule and average.

    Args:
        settings: of the run.
        model, loss: on their device.
        steps: of the optimizer in an epoch.
        dtype: of the convolutions.
        record: what the run's result depends on.
    """
    optimizer = make_optimizer(model, settings.lr, settings.weight_decay)
    warmup, total = settings.warmup_epochs * steps, settings.epochs * steps
    return Trainer(
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, warmup, total),
        scaler=make_scaler(next(model.parameters()).device, dtype),
        loss=loss,
        dtype=dtype,
        ema=make_ema(model, settings.ema) if settings.ema else None,
        clip_grad=settings.clip_grad,
        compile=settings.compile,
        freeze_bn=bool(settings.freeze_bn),
        record=record,
    )


def restore(settings: Settings, trainer: Trainer, state: dict[str, Any], path: Path) -> None:
    """Continue from a checkpoint.

    Args:
        settings: of the run.
        trainer: as it would begin a new run.
        state: the checkpoint.
        path: of its file. If that is not last.pt, it becomes the newest state of the run.

    Raises:
        UserError: it is from a run with different settings.
    """
    check_record(settings, state["flags"], trainer.record)
    trainer.load_state_dict(state)
    if path.name != "last.pt" and is_main():
        save_checkpoint(path.parent, state, settings.keep)
