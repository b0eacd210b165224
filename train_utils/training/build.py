"""What a run is built from, by its settings: data sets, folder, network, loss, trainer."""

import hashlib
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src import Network, U2NetConfig, UserError, build_model, load_model
from src.files import check_outputs
from src.weights.backbone import load_backbone
from src.weights.load import find_weights
from src.weights.named import PUBLISHED
from src.weights.storage import FOLDER, find_file

from ..config import Settings
from ..data.dataset import SegmentationDataset
from ..data.masks import mask_reader
from ..data.splits import find_training_data
from ..distributed import from_main, is_main, is_restarted, on_any_rank, world_size
from .checkpoint import check_record, choose_folder, claim_folder, has_checkpoint, save_checkpoint
from .losses import DeepSupervision, balanced_weights
from .optim import make_ema, make_optimizer, make_scaler, make_scheduler
from .trainer import Trainer


def make_datasets(
    settings: Settings,
) -> tuple[SegmentationDataset, SegmentationDataset, list[int]]:
    """The images to train on, those that choose the best weights, and how many of each data set
    are in the first.

    Raises:
        UserError: a data set is missing or faulty.
    """
    from ..data.transforms import EvalPreset, Growing, TrainPreset, Varying  # torchvision: 1 s

    read = mask_reader(
        settings.num_classes, settings.ignore_index, settings.masks, settings.mask_threshold
    )
    folders = settings.image_dir, settings.mask_dir
    sets, held_out = find_training_data(
        settings.data_path or (), *folders, settings.skip_invalid, read
    )
    notes = [note for found in (sets[0], held_out, *sets[1:]) for note in found.notes]
    if is_main():
        print(*dict.fromkeys(notes), sep="\n", end="\n" if notes else "", flush=True)
    strong, classes = settings.augment == "strong", bool(settings.num_classes)
    soft = settings.soft_cut is not None
    drawn = [
        Varying([TrainPreset(*sizes, strong, classes, soft) for sizes in stage], settings.seed)
        for stage in settings.stages
    ]
    growing = Growing(drawn, settings.first_epochs)
    growing_test = Growing([EvalPreset(n) for n in settings.eval_sizes], settings.first_epochs)
    pairs = [pair for found in sets for pair in found.pairs]
    return (
        SegmentationDataset(pairs, growing, settings.seed),
        SegmentationDataset(held_out.pairs, growing_test),
        [len(found.pairs) for found in sets],
    )


def make_network(settings: Settings, state: dict[str, Any] | None, device: torch.device) -> Network:
    """The network of a checkpoint, of pretrained weights, or a new one, ready to train.

    Args:
        settings: of the run.
        state: the checkpoint to continue from, if there is one.
        device: where to put it.

    Raises:
        UserError: weights and settings don't agree, or the network cannot do what is asked for.
    """
    model = _start_network(settings, state)
    _check_fit(settings, model)
    model.img_size = settings.eval_sizes[-1]
    model.recompute = settings.checkpoint_activations
    model = model.to(device).to(memory_format=torch.channels_last)
    if settings.sync_bn:
        if device.type != "cuda":
            raise UserError("torch's SyncBatchNorm runs on GPUs alone", "sync_bn")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def _start_network(settings: Settings, state: dict[str, Any] | None) -> Network:
    """Built, with the weights it starts from."""
    maps = settings.num_classes or 1
    activation = "softmax" if settings.num_classes else "sigmoid"
    source = "the checkpoint" if state else str(settings.pretrained)
    if state:
        model = build_model(state["config"])
    elif settings.pretrained:
        model = load_model(settings.pretrained)
    else:
        model = build_model(settings.model or "u2net_full", out_ch=maps, activation=activation)
        if settings.backbone:
            load_backbone(model, settings.backbone)
    if settings.model:
        with torch.device("meta"):  # its table is wanted, not its weights
            named = build_model(settings.model)
        if _structure(named) != _structure(model):
            held = f"{source} holds a {model.config.name}{_differences(model, named)}"
            raise UserError(held, "model", settings.model)
    config = model.config
    if (config.in_ch, config.out_ch, config.activation) != (3, maps, activation):
        raise UserError(
            f"{source}: {config.name} takes {config.in_ch} channels and gives {config.out_ch} maps "
            f"by {config.activation}; expected 3, {maps} and {activation}",
            advice="see {num_classes}",
        )
    return model


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


def resolve_freeze_bn(settings: Settings, state: dict[str, Any] | None) -> Settings:
    """Settings whose ``freeze_bn`` is decided: a new run keeps the statistics of pretrained
    weights, a resumed one does as it did.
    """
    if settings.freeze_bn is not None:
        return settings
    frozen = state["flags"].get("freeze_bn", False) if state else settings.pretrained is not None
    return replace(settings, freeze_bn=bool(frozen))


def find_folder(settings: Settings, device: torch.device) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to continue from, if any; the same on all ranks.

    Raises:
        UserError: as :func:`~train_utils.training.checkpoint.choose_folder`.
    """
    # A node whose own processes all lived doesn't count its restart, so any rank's word is taken.
    restarted = on_any_rank(is_restarted(), device)
    if not is_main():
        return from_main(None)
    chosen = choose_folder(
        Path(settings.model or settings.pretrained or "u2net_full").stem,
        resume=settings.resume,
        output_dir=settings.output_dir,
        restarted=restarted,
    )
    if chosen[0].is_dir():  # else when the run begins: what is wrong before that leaves no folder
        claim(*chosen)
    return from_main(chosen)


def claim(folder: Path, checkpoint: Path | None) -> None:
    """Make a run's folder the main rank's own until it ends.

    Args:
        folder: of the run.
        checkpoint: that it continues from, if any.

    Raises:
        UserError: another run is writing to it.
    """
    if is_main():
        claim_folder(folder)
        if checkpoint is None and has_checkpoint(folder):  # of one that has just ended
            raise UserError("already contains a run", "output_dir", folder)


def check_run_files(
    settings: Settings, folder: Path, *datasets: SegmentationDataset, resumed: bool
) -> None:
    """Check that a run writes over nothing that it reads, on the first rank.

    Args:
        settings: of the run.
        folder: of the run.
        *datasets: their files.
        resumed: the run continues from a checkpoint in its folder.

    Raises:
        UserError: a file of the run is one of the data or the weights that it starts from, or
            cannot be written.
    """
    if not is_main():
        return
    weights = () if resumed else (settings.pretrained, settings.backbone)
    inputs = [Path(source) for source in weights if source]
    for dataset in datasets:
        inputs += [file for pair in dataset.pairs for file in (pair.image, pair.mask)]
    names = ("last.pt", "best.pt", "args.json", "log.csv", "curves.png")
    check_outputs({"output_dir": [folder / name for name in names]}, inputs)


def make_loss(settings: Settings, train_set: SegmentationDataset) -> DeepSupervision:
    """The loss; balanced class weights are counted in the masks of the training set."""
    classes, weights = settings.num_classes, settings.class_weights
    cut = settings.soft_cut
    if weights == ("balanced",):
        weights = tuple(balanced_weights(train_set.pairs, classes or 2, settings.ignore_index, cut))
        if is_main():
            print("class weights:", *(f"{weight:.3g}" for weight in weights), flush=True)
    return DeepSupervision(
        weights=settings.loss_weights,
        loss=settings.loss,
        classes=classes or 1,
        ignore_index=settings.ignore_index,
        class_weights=None if weights is None else [float(weight) for weight in weights],
        soft=cut is not None,
    )


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
        "pictures": [_describe(train_set, "to train"), _describe(test_set, "to test")],
        "processes": world_size(),
        "precision": str(dtype),
        "device": device.type,
        "start": start_weights(settings, state),
    }


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


def _check_fit(settings: Settings, model: Network) -> None:
    """Compare what the settings ask for with what the network can take."""
    name, smallest = model.config.name, settings.smallest_crop
    if settings.loss_weights and len(settings.loss_weights) != model.num_maps:
        raise UserError(f"expected one for each of {name}'s {model.num_maps} maps", "loss_weights")
    if settings.batch_size == 1 and smallest <= model.stride:
        problem = (
            f"batch norm needs more than the one pixel of the coarsest maps of crops of {smallest}"
        )
        raise UserError(problem, "batch_size", 1, advice="raise {batch_size} or {crop_size}")
    if smallest <= 2 * model.margin:
        problem = f"the unpadded convolutions of {name} need more than {2 * model.margin} pixels"
        advice = "pass a larger one, or {model} unet_bn"
        raise UserError(problem, "crop_size", smallest, advice)


def _structure(model: Network) -> tuple[Any, ...]:
    config = model.config
    if isinstance(config, U2NetConfig):
        return config.encoder, config.decoder, config.stem, config.fuse_sides
    return config.name, config.width


def _differences(model: Network, named: Network) -> str:
    """Where two networks of one name differ, for people; nothing where their names say it."""
    if model.config.name != named.config.name:
        return ""
    table, other = model.config.to_dict(), named.config.to_dict()
    changed = [name for name in table if table[name] != other.get(name)]
    changed = [name for name in changed if name not in ("out_ch", "activation", "conv_bias")]
    short = "; ".join(
        f"{name} {table[name]}, not {other.get(name)}"
        if isinstance(table[name], int | None)
        else f"other values of {name}"
        for name in changed
    )
    return f" with {short}" if short else ""


def _describe(dataset: SegmentationDataset, purpose: str) -> str:
    """The number of images, and a checksum of their names that shows whether they are others."""
    names = "\n".join(pair.name for pair in dataset.pairs)
    return f"{len(dataset)} pictures {purpose} (names {zlib.crc32(os.fsencode(names)):08x})"
