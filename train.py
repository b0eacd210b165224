"""Train a network of the U²-Net family.

    python train.py --data-path DUTS --model u2net_full
    python train.py --data-path my_pictures --model u2net_lite --img-size 160 --epochs 40
    python train.py --data-path streets --num-classes 11 --ignore-index 11 --model segnet
    python train.py --data-path DUTS --model u2net_full --resume auto
    torchrun --nproc_per_node=4 train_multi_GPU.py --data-path DUTS     (the same flags)

The run's folder gets args.json, log.csv, curves.png, samples/, tensorboard/, last.pt (to go on
from) and best.pt (the weights with the highest maxF, or mean IoU of classes, on the pictures of
val.txt, or else the test split; give it to validation.py and predict.py). Ctrl-C finishes the step,
writes last.pt and leaves with status 130; --resume auto goes on, after a crash too, to the same
result.
"""

import argparse
import zlib
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from my_dataset import SegmentationDataset, find_pairs, find_splits, has_list
from src import NETWORKS, UserError
from src.device import keep_freed_memory, pick_device, pick_dtype
from train_utils import cli
from train_utils.data.loaders import EpochSampler, eval_loader, train_loader
from train_utils.data.masks import mask_reader
from train_utils.distributed import (
    from_main,
    is_main,
    is_restarted,
    launch_id,
    on_any_rank,
    process_group,
    rank,
    world_size,
)
from train_utils.training.build import make_loss, start_network
from train_utils.training.checkpoint import load_checkpoint, save_checkpoint
from train_utils.training.loop import Interrupted, Plan, fit
from train_utils.training.losses import PARTS
from train_utils.training.optim import make_ema, make_optimizer, make_scaler, make_scheduler
from train_utils.training.records import write_args
from train_utils.training.runs import choose_folder
from train_utils.training.tasks import Classes, Saliency
from train_utils.training.trainer import Trainer
from transforms import EvalPreset, Growing, TrainPreset

# The flags that a resumed run may change; on all others, its result depends. Data, network and
# device are compared as what they turn out to be.
_FREE = (
    *("data_path", "image_dir", "mask_dir", "skip_invalid", "model", "pretrained", "backbone"),
    *("device", "amp"),
    *("workers", "output_dir", "resume", "save_every", "keep"),
)


def parse_args(argv: list[str] | None = None, doc: str = __doc__) -> argparse.Namespace:
    """The flags of a run; each has a default but the data."""
    parser = cli.make_parser(doc)
    data = cli.add_data_flags(parser, several=True)
    data.add_argument("--data-shares", type=cli.not_negative, nargs="+", metavar="X", help=(
        "how often an epoch takes each picture of each --data-path: 2 twice, 0.5 every other one, "
        "chosen anew each time (default: 1 for each). The first set chooses the best weights, by "
        "its val.txt if there is one, else by its test pictures"
    ))  # fmt: skip
    data.add_argument("--num-classes", type=cli.positive, metavar="K", help=(
        "masks hold class indices below K, grey or palette, and the network gives a map for each "
        "(default: masks of object and background, one map)"
    ))  # fmt: skip
    data.add_argument("--ignore-index", type=cli.natural, metavar="I", help=(
        "with --num-classes: pixels whose mask holds this count nowhere"
    ))  # fmt: skip
    count = {"type": cli.positive, "metavar": "N"}
    number = {"type": cli.not_negative, "metavar": "X"}
    net = parser.add_argument_group("network")
    add = net.add_argument
    add("--model", metavar="NAME", help=(
        f"{', '.join(NETWORKS)}, or a .json table (default: u2net_full)"
    ))  # fmt: skip
    start = net.add_mutually_exclusive_group().add_argument
    start(
        "--pretrained", type=Path, metavar="W", help="start from these weights, any that are read"
    )
    start("--backbone", metavar="imagenet|W", help=(
        "fcn8s, segnet: start from torchvision's VGG-16, which it downloads, or from that file"
    ))  # fmt: skip
    add("--img-size", **count, nargs="+", default=[320], help=(
        "pictures are resized to this square, in pixels; several: in turn (default: 320)"
    ))  # fmt: skip
    add("--crop-size", **count, nargs="+", help="of the random crop (default: 9/10 of --img-size)")
    add("--grow-at", type=cli.fraction, nargs="+", metavar="X", help=(
        "the shares of the run after which the next --img-size holds (default: evenly spaced)"
    ))  # fmt: skip
    recipe = parser.add_argument_group("recipe")
    add = recipe.add_argument
    add("--epochs", **count, default=360, help="passes over the training split")
    add("--batch-size", **count, default=16, help="pictures per step and process")
    add("--accum", **count, default=1, help="batches per optimizer step")
    add("--lr", **number, default=1e-3, help="peak learning rate")
    add("--warmup-epochs", type=cli.natural, metavar="N", default=2, help=(
        "in which the learning rate rises, half the run at most; then a cosine to the end"
    ))  # fmt: skip
    add("--weight-decay", **number, default=1e-4, help="of weights, not of norms and biases")
    add("--clip-grad", **number, default=0.0, help="largest gradient norm; 0 for none")
    add("--loss-weights", type=cli.not_negative, nargs="+", metavar="W", help=(
        "a weight per map, fused first, then side maps from fine to coarse (default: 1 for each)"
    ))  # fmt: skip
    add("--loss", metavar="NAME", help=(
        f"of each map: {', '.join(PARTS)}, or a sum such as bce+iou+ssim (default: bce, the "
        "published one; ce with --num-classes)"
    ))  # fmt: skip
    add("--class-weights", type=cli.weight, nargs="+", metavar="W", help=(
        "in bce and ce: one for each class (without --num-classes: background, object), or "
        "balanced, the median frequency balancing of the training masks (default: none)"
    ))  # fmt: skip
    add("--augment", choices=("basic", "strong"), default="basic", help=(
        "basic: crop and flip, as published; strong: scale, aspect, colour, blur, noise, JPEG "
        "artefacts and pasted objects too"
    ))  # fmt: skip
    add("--ema", type=cli.fraction, nargs="?", const=0.999, default=0.0, metavar="DECAY", help=(
        "keep a moving average of the weights, evaluate and ship that; 0.999 if no number is given"
    ))  # fmt: skip
    add("--seed", type=cli.natural, metavar="N", default=0, help="of weights, order and crops")
    add("--sync-bn", action="store_true", help=(
        "batch norm over the batches of all GPUs together; for small ones, under torchrun"
    ))  # fmt: skip
    add("--freeze-bn", action=argparse.BooleanOptionalAction, help=(
        "batch norm keeps its statistics and uses them in training too (default: with --pretrained)"
    ))  # fmt: skip
    device = cli.add_device_flags(parser)
    device.add_argument("--compile", action="store_true", help="build the step by torch.compile")
    device.add_argument("--checkpoint-activations", action="store_true", help=(
        "compute what lies inside a stage again for the gradient: less memory, more time"
    ))  # fmt: skip
    out = parser.add_argument_group("run")
    add = out.add_argument
    add(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="the run's folder (default: runs/MODEL-1, -2, ...)",
    )
    add("--resume", metavar="PATH", help=(
        "go on from a last.pt; auto: from the newest whole checkpoint in --output-dir (by default "
        "the newest run of this --model), or anew if there is none"
    ))  # fmt: skip
    add("--eval-interval", **count, default=10, help="epochs between evaluations")
    add("--save-every", type=cli.natural, default=0, metavar="N", help=(
        "optimizer steps between checkpoints; 0: after each epoch alone"
    ))  # fmt: skip
    add("--keep", **count, default=2, help="checkpoints to keep: last.pt, last-1.pt before it, ...")
    args = parser.parse_args(argv)
    _complete(parser, args)
    return args


def _complete(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Defaults that follow from other flags; the end of the program where flags don't agree."""
    sizes = args.img_size
    args.crop_size = args.crop_size or [size * 9 // 10 for size in sizes]
    if min(args.crop_size) < 32:
        parser.error(f"--crop-size {args.crop_size}: at least 32 (by default 9/10 of --img-size)")
    if len(args.crop_size) != len(sizes):
        parser.error(f"--crop-size: {len(args.crop_size)} for {len(sizes)} of --img-size")
    args.grow_at = args.grow_at or [i / len(sizes) for i in range(1, len(sizes))]
    if len(args.grow_at) != len(sizes) - 1:
        parser.error("--grow-at: a rising share of the run for each --img-size after the first")
    starts = [*first_epochs(args), args.epochs]
    if any(a >= b for a, b in pairwise(starts)):
        parser.error(
            f"--epochs {args.epochs}: each --img-size needs one of its own, but they begin after "
            f"{', '.join(map(str, starts[:-1]))}; more epochs, fewer sizes, or another --grow-at"
        )
    sets = len(args.data_path or [None])
    args.data_shares = args.data_shares or [1.0] * sets
    if len(args.data_shares) != sets:
        parser.error(f"--data-shares: {len(args.data_shares)} for {sets} of --data-path")
    if not all(args.data_shares):
        parser.error("--data-shares: 0 for a set; leave it out of --data-path")
    if args.num_classes is not None and not 2 <= args.num_classes <= 255:
        parser.error(f"--num-classes {args.num_classes}: from 2 to 255")
    if args.ignore_index is not None and (args.num_classes is None or args.ignore_index > 255):
        parser.error("--ignore-index: up to 255, with --num-classes")
    args.loss = args.loss or ("ce" if args.num_classes else "bce")
    if args.class_weights and not {"bce", "ce"} & set(args.loss.split("+")):
        parser.error(f"--class-weights: bce and ce take them, --loss {args.loss} does not")
    weights, classes = args.class_weights or [], args.num_classes or 2
    if weights and weights != ["balanced"] and (len(weights) != classes or "balanced" in weights):
        parser.error(f"--class-weights: balanced, or {classes} numbers")


def train(args: argparse.Namespace) -> int:
    """The whole run; returns the exit status."""
    device = pick_device(args.device)
    dtype = pick_dtype(args.amp, device)
    train_set, test_set, lengths = _datasets(args)
    # A node whose own processes all lived doesn't count its restart, so any rank's word is taken.
    restarted = on_any_rank(is_restarted(), device)
    name = Path(args.model or args.pretrained or "u2net_full").stem
    folder, resume = from_main(
        choose_folder(name, args.resume, args.output_dir, restarted) if is_main() else None
    )
    state = load_checkpoint(resume) if resume else None
    if args.freeze_bn is None:  # a run that is gone on with needs no --pretrained
        begun = state["flags"] if state else {"freeze_bn": args.pretrained is not None}
        args.freeze_bn = begun.get("freeze_bn", False)
    if args.freeze_bn and args.sync_bn:
        raise UserError("--sync-bn: batch norm keeps its statistics; add --no-freeze-bn")
    torch.manual_seed(args.seed)
    model = start_network(args, state).to(device, memory_format=torch.channels_last)
    on_gpu = device.type == "cuda"
    if args.sync_bn:
        if not on_gpu:
            raise UserError("--sync-bn: torch's SyncBatchNorm runs on GPUs alone; leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.recompute = args.checkpoint_activations
    torch.manual_seed(args.seed + rank())  # each rank's dropout is its own
    sampler = EpochSampler(lengths, args.batch_size, args.seed, args.data_shares)
    loader = train_loader(train_set, sampler, args.workers, on_gpu)
    test = eval_loader(test_set, args.batch_size, args.workers, on_gpu)
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    steps = -(-len(loader) // args.accum)
    trainer = Trainer(
        model,
        optimizer,
        make_scheduler(optimizer, args.warmup_epochs * steps, args.epochs * steps),
        make_scaler(device, dtype),
        make_loss(args, train_set).to(device),
        dtype,
        make_ema(model, args.ema) if args.ema else None,
        args.clip_grad,
        args.compile,
        args.freeze_bn,
        flags={name: value for name, value in vars(args).items() if name not in _FREE}
        | {"pictures": [_told(train_set, "to train"), _told(test_set, "to test")]}
        | {"processes": world_size(), "precision": str(dtype), "device": device.type},
    )
    if state:
        trainer.load_state_dict(state)
        if resume.name != "last.pt" and is_main():  # the newest state of the run is now this one
            save_checkpoint(folder, state, args.keep)
        del state  # twice the network, and more, that the run has no more use for
    if trainer.epoch < args.epochs:
        if is_main():
            _announce(args, trainer, folder, resume)
        status = _fit(trainer, loader, test, folder, args)
        if status:
            return status
    elif is_main():
        print(f"{folder}: {trainer.epoch} of {args.epochs} epochs are done; none is left to train")
    best = trainer.best
    if is_main() and best:
        scores = ", ".join(f"{name} {best[name]:.4f}" for name in _task(args).told)
        print(f"best {scores} after epoch {best['epoch']}: {folder / 'best.pt'}")
    return 0


def _fit(
    trainer: Trainer, loader: DataLoader, test: DataLoader, folder: Path, args: argparse.Namespace
) -> int:
    task, often = _task(args), (args.eval_interval, args.save_every)
    plan = Plan(args.epochs, args.accum, *often, args.keep, task)
    try:
        fit(trainer, loader, test, folder, plan)
    except Interrupted as stopped:
        if is_main():
            print(f"stopped; go on by the same flags and --resume {folder / 'last.pt'}", flush=True)
        return 128 + stopped.args[0]
    return 0


def _task(args: argparse.Namespace) -> Saliency | Classes:
    return Classes(args.num_classes, args.ignore_index) if args.num_classes else Saliency()


def _told(dataset: SegmentationDataset, purpose: str) -> str:
    """How many pictures, and a sum of their names that shows if they are others."""
    names = "\n".join(pair.name for pair in dataset.pairs)
    return f"{len(dataset)} pictures {purpose} (names {zlib.crc32(names.encode()):08x})"


def _announce(
    args: argparse.Namespace, trainer: Trainer, folder: Path, resume: Path | None
) -> None:
    if resume:
        print(f"going on from {resume} after {trainer.epoch} epochs and {trainer.step} batches")
    elif args.resume:
        print(f"no checkpoint in {folder}: a new run")
    write_args(folder, {k: v for k, v in vars(args).items() if k != "resume"}, launch_id())
    pictures = " and ".join(trainer.flags["pictures"])
    precision = str(trainer.dtype).removeprefix("torch.")
    print(f"{trainer.model.config.name} on {trainer.device} in {precision}, {pictures}, "
          f"into {folder}/", flush=True)  # fmt: skip


def _datasets(args: argparse.Namespace) -> tuple[SegmentationDataset, SegmentationDataset, list]:
    """All pictures to train on, those that choose the best weights, and how many of each set are
    in the first.
    """
    first, *others = args.data_path or [None]
    held_out = "val" if has_list(first or args.image_dir, "val") else "test"
    read = mask_reader(args.num_classes, args.ignore_index)
    folders = args.image_dir, args.mask_dir, args.skip_invalid, read
    train, test = find_splits(first, ("train", held_out), *folders)
    notes, sets = [*train.notes, *test.notes], [train.pairs]
    for path in others:
        found = find_pairs(path, "train", *folders)
        notes += found.notes
        sets.append(found.pairs)
    if has_list(first, "classes") and not args.num_classes:
        notes.append("classes.txt is left aside, as --num-classes is not given: all is one object")
    if is_main():
        print(*dict.fromkeys(notes), sep="\n", end="\n" if notes else "", flush=True)
    starts = first_epochs(args)
    kind, sizes = (
        (args.augment == "strong", bool(args.num_classes)),
        (args.img_size, args.crop_size),
    )
    grow = Growing([TrainPreset(*size, *kind) for size in zip(*sizes, strict=True)], starts)
    grow_test = Growing([EvalPreset(size) for size in args.img_size], starts)
    pairs = [pair for one in sets for pair in one]
    data = SegmentationDataset(pairs, grow, args.seed, read)
    return data, SegmentationDataset(test.pairs, grow_test, read=read), [len(one) for one in sets]


def first_epochs(args: argparse.Namespace) -> list[int]:
    """The epoch, counted from 0, from which each --img-size holds."""
    return [round(share * args.epochs) for share in (0, *args.grow_at)]


def launch(args: argparse.Namespace) -> int:
    """Train, in torchrun's process group where there is one."""
    keep_freed_memory()
    with process_group(args.device):
        return train(args)


def main(argv: list[str] | None = None) -> int:
    """Parse and train."""
    return launch(parse_args(argv))


if __name__ == "__main__":
    cli.run(main)
