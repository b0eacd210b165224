"""Train a network of the U²-Net family.

    python train.py --data-path DUTS --model u2net_full
    python train.py --data-path my_images --model u2net_lite --img-size 160 --epochs 40
    python train.py --config recipes/finetune.toml --data-path my_images
    python train.py --data-path streets --num-classes 11 --ignore-index 11 --model segnet
    python train.py --data-path DUTS --model u2net_full --resume auto
    torchrun --nproc_per_node=4 train_multi_GPU.py --data-path DUTS     (the same flags)

The run's folder gets args.json, log.csv, curves.png, samples/, tensorboard/, last.pt (to resume
from) and best.pt (the weights with the highest maxF, or mean IoU of classes, on the images of
val.txt, else on the test split; pass it to validation.py and predict.py). Ctrl-C finishes the step,
writes last.pt and exits with status 130; --resume auto continues, also after a crash, and on a CPU
gives the same result as an uninterrupted run.
"""

import os
from pathlib import Path
from typing import NamedTuple

# Let waiting threads sleep soon, instead of spinning on their core for some 20 ms: next to another
# busy process a step took several times as long. OpenMP reads this when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from src import UserError
from src.device import pick_device, pick_dtype, set_up_process
from src.words import counted
from train_utils import cli
from train_utils.config import Settings
from train_utils.data.dataset import SegmentationDataset
from train_utils.data.loaders import EpochSampler, Loader, eval_loader, train_loader
from train_utils.distributed import is_main, launch_id, process_group, rank, world_size
from train_utils.training import build
from train_utils.training.checkpoint import has_checkpoint, load_checkpoint
from train_utils.training.loop import Diverged, Interrupted, Task, fit
from train_utils.training.records import check_trackers, write_args
from train_utils.training.supervision import has_mask
from train_utils.training.trainer import Trainer


def parse_args(argv: list[str] | None = None, doc: str | None = __doc__) -> Settings:
    """The settings from the flags and a recipe file."""
    return cli.parse_settings(argv, doc)


class Run(NamedTuple):
    """Everything that a run needs before its first step."""

    settings: Settings
    trainer: Trainer
    train: Loader[SegmentationDataset]
    test: Loader[SegmentationDataset]
    folder: Path
    resume: Path | None  # the checkpoint to continue from


def train(settings: Settings) -> int:
    """The whole run; returns the exit status."""
    run = _prepare(settings)
    settings, trainer, folder = run.settings, run.trainer, run.folder
    build.claim(folder, run.resume)
    task = Task(settings.num_classes, settings.ignore_index, settings.soft_cut)
    if is_main():
        _announce(settings, trainer, folder, run.resume, run.train)
    try:
        fit(
            trainer,
            run.train,
            run.test,
            folder,
            epochs=settings.epochs,
            accum=settings.accum,
            eval_interval=settings.eval_interval,
            save_every=settings.save_every,
            keep=settings.keep,
            task=task,
            patience=settings.patience,
            trackers=settings.tracker,
        )
    except Interrupted as interrupted:
        if is_main():
            last = folder / "last.pt"
            print(f"Stopped; continue with the same flags and --resume {last}", flush=True)
        return 128 + interrupted.args[0]
    except Diverged as error:
        raise UserError(f"{error}. {_advice(folder)}") from None
    if is_main() and trainer.best:
        scores = ", ".join(f"{name} {trainer.best[name]:.4f}" for name in task.shown)
        print(f"best {scores} after epoch {trainer.best['epoch']}: {folder / 'best.pt'}")
    return 0


def _prepare(settings: Settings) -> Run:
    """Build everything a run needs; errors are raised before anything is written."""
    set_up_process()
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.amp, device)
    cli.require_packages("matplotlib", "torchvision")
    check_trackers(settings.tracker)
    build.report_unused_classes(settings)
    if settings.freeze_encoder and is_main() and not (settings.pretrained or settings.backbone):
        print("The frozen encoder's weights are random without --pretrained or --backbone")

    # The run's folder, and the checkpoint to continue from.
    folder, resume = build.find_folder(settings, device)
    state = load_checkpoint(resume) if resume else None
    settings = build.resolve_freeze_bn(settings, state)
    if settings.freeze_bn and settings.sync_bn:
        raise UserError("--sync-bn: batch norm keeps its statistics; pass --no-freeze-bn")

    # The network and its teacher; wrong flags are reported before the data are read.
    torch.manual_seed(settings.seed)
    model = build.make_network(settings, state, device)
    starts = build.size_starts(settings, state)
    build.check_paths(settings)
    teacher = build.make_teacher(settings, device, dtype)

    # Data: the training set, and the set that selects the best weights.
    train_set, test_set, lengths = build.make_datasets(settings, starts)
    if teacher:
        teacher.labelled = sum(map(has_mask, train_set.pairs))
    build.check_run_files(settings, folder, train_set, test_set, resumed=bool(resume))
    shares = None if settings.overfit else settings.data_shares
    sampler = EpochSampler(lengths, settings.batch_size, settings.seed, shares)
    on_gpu = device.type == "cuda"
    options = settings.workers, on_gpu, True  # unreadable images do not stop a run
    train_batches = train_loader(train_set, sampler, *options)
    test_batches = eval_loader(test_set, settings.batch_size, *options)

    # The loss, and a different one for the end of the run if there is one.
    torch.manual_seed(settings.seed + rank())  # each rank draws its own dropout
    losses = [loss.to(device) for loss in build.make_losses(settings, train_set)]

    # Optimizer, schedule, weight average: the state that changes with each step.
    record = build.make_record(settings, state, train_set, test_set, device, dtype)
    steps = -(-len(train_batches) // settings.accum)  # per epoch
    trainer = build.make_trainer(
        settings,
        model,
        *losses,
        steps=steps,
        dtype=dtype,
        record=record,
        starts=starts,
        state=state,
        teacher=teacher,
    )
    if state and resume:
        build.restore(settings, trainer, state, resume, steps=steps, starts=starts)
    return Run(settings, trainer, train_batches, test_batches, folder, resume)


def _announce(
    settings: Settings,
    trainer: Trainer,
    folder: Path,
    resume: Path | None,
    train: Loader[SegmentationDataset],
) -> None:
    """Announce the run and record it in args.json."""
    if trainer.epoch >= settings.epochs:
        print(f"{folder}: {counted(settings.epochs, 'epoch is', 'epochs are')} done already")
        return
    if trainer.has_stopped(settings.patience):
        advice = "raise --patience or --epochs to go on"
        print(f"{folder}: stopped early after epoch {trainer.epoch}; {advice}")
        return
    epochs, batches = counted(trainer.epoch, "epoch"), trainer.batches_done
    in_epoch = f" and {counted(batches, 'batch', 'batches')}" if batches else ""
    done = f"{epochs}{in_epoch}" if resume else None
    if resume:
        print(f"Resuming from {resume} after {done}")
    elif settings.resume:
        print(f"No checkpoint in {folder}: starting a new run")
    elif (folder / "args.json").exists():
        print(f"The run in {folder} has no checkpoint: starting from scratch")
    args = settings.to_dict()
    del args["resume"]
    write_args(folder, args, launch_id(), resumed=done)
    images = ", ".join(trainer.record["images"])
    precision = str(trainer.dtype).removeprefix("torch.")
    name = trainer.model.config.name
    print(f"{name} on {trainer.device} in {precision}, {images}, into {folder}/", flush=True)
    if settings.pretrained and not resume:
        print(f"starting from {settings.pretrained}: {trainer.model.origin}")
    if trainer.teacher:
        print(f"taught by {settings.teacher}: {trainer.teacher.predictor.origin}")
    sampler = train.sampler
    taken = len(sampler) * settings.batch_size * world_size()
    if sampler.taken != sampler.lengths or taken > len(train.dataset):
        pairs = zip(sampler.taken, sampler.lengths, strict=True)
        again = taken > sum(sampler.taken) or any(n > length for n, length in pairs)
        twice = ", some of them more than once" if again else ""
        print(f"an epoch takes {counted(taken, 'image')}{twice}", flush=True)


def _advice(folder: Path) -> str:
    """What may help after a run has diverged."""
    start = f"with --pretrained {folder}/last.pt and " if has_checkpoint(folder) else "with "
    return f"Check the images, or start a new run {start}a lower --lr, --clip-grad 1 or --amp off"


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and train, in torchrun's process group if there is one."""
    settings = parse_args(argv)
    with process_group(settings.device):
        return train(settings)


if __name__ == "__main__":
    cli.run(main)
