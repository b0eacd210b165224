"""The trainer of a run, the record of its settings, and resuming from a checkpoint."""

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from src import Network, load_model
from src.weights.load import find_weights
from src.weights.named import PUBLISHED
from src.weights.storage import FOLDER, find_file

from ...config import Settings
from ...data.dataset import SegmentationDataset
from ...distributed import is_main, world_size
from ..checkpoint import check_record, save_checkpoint
from ..losses import DeepSupervision
from ..optim import MovingAverage, make_optimizer, make_scaler, make_scheduler
from ..supervision import Teacher, check_maps, has_mask, make_mask_encoder
from ..trainer import Trainer
from .data import describe
from .network import encoder_of, place_network
from .schedule import extend, plan_schedule


def make_record(
    settings: Settings,
    state: dict[str, Any] | None,
    train_set: SegmentationDataset,
    test_set: SegmentationDataset,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Everything the result of a run depends on: settings, and facts that stand for other settings.

    Checkpoints keep it as ``flags``; its ``images`` describe the data sets.
    """
    labelled = [pair for pair in train_set.pairs if has_mask(pair)]
    selected = describe(test_set.pairs, "to select the best weights by")
    images = [describe(labelled, "to train"), selected]
    if more := [pair for pair in train_set.pairs if not has_mask(pair)]:
        images.insert(1, describe(more, "without masks"))
    return settings.record() | {
        "images": images,
        "processes": world_size(),
        "precision": str(dtype),
        "device": device.type,
        "start": start_weights(settings, state),
        "teacher": identify_weights(settings.teacher) if settings.teacher else None,
    }


def start_weights(settings: Settings, state: dict[str, Any] | None) -> str | None:
    """An identifier of the weights that a run started from: the sha256 of their file, the md5 of a
    published one, or ``imagenet``; None for random ones.

    When resuming from a checkpoint's path, they default to those of the checkpoint.
    """
    source = settings.pretrained or settings.backbone
    if source is None and state and settings.resume not in (None, "auto"):
        return state["flags"].get("start")
    if source is None or source == "imagenet":
        return source
    return identify_weights(source)


def identify_weights(source: str | Path) -> str:
    """An identifier of weights: the sha256 of their file, or the md5 of a published one."""
    path = find_weights(source)
    if (entry := PUBLISHED.get(str(source))) and path == entry.converted:
        return f"md5 {entry.md5}"  # of its source: a new conversion has other bytes
    path = find_file(path)  # the weights in a run's folder, whose other files change
    digest = hashlib.sha256()
    for file in [path / name for name in FOLDER] if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return f"sha256 {digest.hexdigest()}"


def make_teacher(settings: Settings, device: torch.device, dtype: torch.dtype) -> Teacher | None:
    """The teacher of a run, if it has one.

    Raises:
        UserError: its file holds no weights, or weights for another task.
    """
    if settings.teacher is None or settings.teacher_weight is None:
        return None
    network = load_model(settings.teacher)
    maps = settings.num_classes or 1
    check_maps(network, maps, "its", parameter="teacher", value=settings.teacher)
    return Teacher(network, settings.teacher_weight, device, dtype)


def make_trainer(
    settings: Settings,
    model: Network,
    loss: DeepSupervision,
    final_loss: DeepSupervision | None = None,
    *,
    steps: int,
    dtype: torch.dtype,
    record: dict[str, Any],
    starts: Sequence[int],
    state: dict[str, Any] | None = None,
    teacher: Teacher | None = None,
) -> Trainer:
    """The network with optimizer, schedule and moving average.

    Args:
        settings: of the run.
        model, loss: on their device.
        final_loss: in place of ``loss`` at the end of the run, if any.
        steps: optimizer steps per epoch.
        dtype: of the convolutions.
        record: what the run's result depends on.
        starts: when each size begins, see :func:`~.schedule.size_starts`.
        state: the checkpoint that :func:`restore` will continue from, if any.
        teacher: its maps are targets too.
    """
    optimizer = make_optimizer(model, settings.lr, settings.weight_decay, settings.optimizer)
    frozen = settings.freeze_encoder
    plan = dict(state["schedule"]) if state else plan_schedule(settings, steps, starts)
    mask_encoder = None
    if settings.feature_supervision:
        place = partial(place_network, settings, next(model.parameters()).device)
        mask_encoder = make_mask_encoder(model, loss, settings.seed, place)
    return Trainer(
        model=model,
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, plan["warmup"], plan["total"]),
        scaler=make_scaler(next(model.parameters()).device, dtype),
        loss=loss,
        final_loss=final_loss,
        dtype=dtype,
        ema=MovingAverage(model, settings.ema) if settings.ema else None,
        clip_grad=settings.clip_grad,
        compile=settings.compile,
        freeze_bn=bool(settings.freeze_bn),
        encoder=encoder_of(settings, model),
        frozen_epochs=math.inf if frozen == "all" else float(frozen),
        teacher=teacher,
        mask_encoder=mask_encoder,
        record=record,
        schedule=plan,
    )


def restore(
    settings: Settings,
    trainer: Trainer,
    state: dict[str, Any],
    path: Path,
    steps: int,
    starts: Sequence[int],
) -> None:
    """Continue from a checkpoint.

    Args:
        settings: of the run.
        trainer: set up as for a new run.
        state: the checkpoint.
        path: of its file. If that is not last.pt, it becomes the newest state of the run.
        steps, starts: as for :func:`make_trainer`, for the rest of the run.

    Raises:
        UserError: it is from a run with different settings.
    """
    check_record(settings, state["flags"], trainer.record)
    trainer.load_state_dict(state)
    if trainer.schedule["epochs"] != settings.epochs:
        note = extend(settings, trainer, steps, starts)
        if is_main():
            print(note, flush=True)
    if path.name != "last.pt" and is_main():
        save_checkpoint(path.parent, state, settings.keep)
