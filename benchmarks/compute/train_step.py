"""One training step: time and memory of the tutorials' method and ours.

    python -m benchmarks.compute.train_step                     # lite, batch 4 at 288^2, on the CPU
    python -m benchmarks.compute.train_step --model u2net_full --rounds 2

Each side runs in its own process, in turn for several rounds, so that none affects another's memory
and drift affects all. tutorial is eager, NCHW, float32, default AdamW. ours is what train.py does:
Trainer.step in bf16 where that is fast, channels last, fused AdamW, freed memory kept, custom
kernels between the convolutions. layers is ours with torch's layers instead of these kernels,
spinning is ours with threads that spin while waiting, OpenMP's default, and recomputed is ours with
--checkpoint-activations. Times are medians; if the machine is busy, compare CPU times. Memory is
the process's peak resident size, in total and minus that of Python and its libraries before the
network is created.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from src import NETWORKS, build_model
from src.device import keep_freed_memory, pick_device, pick_dtype
from train_utils import cli
from train_utils.training.kernels.library import SWITCH
from train_utils.training.losses import DeepSupervision
from train_utils.training.optim import make_optimizer, make_scaler, make_scheduler
from train_utils.training.trainer import Trainer

from ..timing import peak_memory, seconds


def tutorial_step(model: torch.nn.Module, pictures: torch.Tensor, masks: torch.Tensor):
    """The step as in tutorials; returns a function that runs one step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pictures = (pictures / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    masks = masks.float()

    def step() -> None:
        losses = [F.binary_cross_entropy_with_logits(x, masks) for x in model(pictures)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()

    return step


def our_step(model: torch.nn.Module, pictures: torch.Tensor, masks: torch.Tensor):
    """The step as in train.py."""
    keep_freed_memory()
    trainer = make_trainer(model, pick_device("cpu"))
    return lambda: trainer.step([(pictures, masks, torch.arange(len(pictures)))])


def make_trainer(model: torch.nn.Module, device: torch.device, compiled: bool = False) -> Trainer:
    """A trainer as in train.py, with its defaults."""
    dtype = pick_dtype("auto", device)
    model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, 1e-3, 1e-4)
    scheduler, scaler = make_scheduler(optimizer, 2, 1000), make_scaler(device, dtype)
    loss = DeepSupervision().to(device)
    return Trainer(
        model=model,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=scaler,
        loss=loss,
        dtype=dtype,
        compile=compiled,
    )


def recomputed_step(model: torch.nn.Module, pictures: torch.Tensor, masks: torch.Tensor):
    """Our step with --checkpoint-activations."""
    model.recompute = True
    return our_step(model, pictures, masks)


def layers_step(model: torch.nn.Module, pictures: torch.Tensor, masks: torch.Tensor):
    """Our step with torch's layers between the convolutions."""
    os.environ[SWITCH] = "off"
    return our_step(model, pictures, masks)


SIDES = {
    "tutorial": tutorial_step,
    "layers": layers_step,
    "ours": our_step,
    "spinning": our_step,
    "recomputed": recomputed_step,
}


def measure(side: str, args: argparse.Namespace) -> None:
    """Print one side's median seconds per step, wall time and CPU time, and its peak memory in GB,
    as JSON."""
    torch.manual_seed(0)
    before = peak_memory()  # Python and its libraries
    size = (args.size, args.size)
    pictures = torch.randint(0, 256, (args.batch_size, 3, *size), dtype=torch.uint8)
    masks = torch.randint(0, 2, (args.batch_size, 1, *size), dtype=torch.uint8)
    step = SIDES[side](build_model(args.model).train(), pictures, masks)
    step()
    wall, processor = [], []
    for _ in range(args.steps):
        before_step = time.process_time()
        wall.append(seconds(step))
        processor.append(time.process_time() - before_step)
    peak = peak_memory()
    times = {"seconds": statistics.median(wall), "processor": statistics.median(processor)}
    print(json.dumps({**times, "peak": peak, "step": peak - before}))


def compare(model: str, rounds: int, **flags: int) -> list[dict[str, float | str]]:
    """A row for each side: medians of its rounds, and its speed relative to the tutorials'.

    Args:
        model: a name from ``NETWORKS``.
        rounds: processes per side, in turn.
        **flags: flags of this benchmark, by name.
    """
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    command = [sys.executable, "-m", "benchmarks.compute.train_step", "--model", model]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    waits = {"GOMP_SPINCOUNT": "1000"}  # as train.py sets it
    for _ in range(rounds):
        for side, taken in results.items():
            run = subprocess.run(
                [*command, "--side", side],
                check=True,
                stdout=subprocess.PIPE,
                env={**os.environ, **({} if side in ("tutorial", "spinning") else waits)},
            )
            taken.append(json.loads(run.stdout.splitlines()[-1]))
    rows: list[dict[str, float | str]] = []
    for side, taken in results.items():
        row = {key: statistics.median(r[key] for r in taken) for key in taken[0]}
        base = rows[0] if rows else row
        times = {f"{key}_ratio": base[key] / row[key] for key in ("seconds", "processor")}
        times["times_tutorial"] = times.pop("seconds_ratio")
        rows.append({"network": model, "way": side, **row, **times})
    return rows


def parse_args() -> argparse.Namespace:
    """The flags of the benchmark."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model", choices=NETWORKS, default="u2net_lite", help="network")
    parser.add_argument("--batch-size", type=cli.positive, default=4, help="images per step")
    parser.add_argument("--size", type=cli.positive, default=288, help="side of the images")
    parser.add_argument("--steps", type=cli.positive, default=5, help="timed steps per round")
    parser.add_argument("--rounds", type=cli.positive, default=3, help="processes per side")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run all sides in turn and print their medians and ratios."""
    args = parse_args()
    if args.side:
        measure(args.side, args)
        return
    flags = {"batch_size": args.batch_size, "size": args.size, "steps": args.steps}
    rows = compare(args.model, args.rounds, **flags)
    cores = torch.get_num_threads()
    print(f"{args.model}, batch {args.batch_size} at {args.size}^2, {cores} cores")
    for row in rows:
        print(f"{row['way']:12s} {row['seconds']:6.2f} s per step, {row['times_tutorial']:.2f} x "
              f"as fast; {row['processor']:6.2f} s of CPU time, {row['processor_ratio']:.2f} x; "
              f"{row['step']:5.2f} GB for the network and its step, "
              f"{row['step'] / rows[0]['step']:.2f} x; {row['peak']:5.2f} GB in total, "
              f"{row['peak'] / rows[0]['peak']:.2f} x")  # fmt: skip


if __name__ == "__main__":
    main()
