"""One training step: time and memory, the tutorial's way against ours.

    python -m benchmarks.train_step                        # lite, batch 4 at 288^2, on the CPU
    python -m benchmarks.train_step --model u2net_full --rounds 2

Each side runs in a process of its own, several rounds in turn, so that neither sees the other's
memory and a drift of the machine hits both. The tutorial's way is eager, NCHW, float32, AdamW as it
comes; ours is what train.py does: Trainer.train_step in bf16 where that is fast, channels last,
fused AdamW, freed memory kept. Memory is the process's peak resident size, whole and
without what Python and its libraries take before the network is made.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from src import NETWORKS, build_model
from src.device import pick_device, pick_dtype
from train_utils import cli
from train_utils.losses import DeepSupervision
from train_utils.optim import make_optimizer, make_scaler, make_scheduler
from train_utils.trainer import Trainer


def tutorial_step(model: torch.nn.Module, pictures: torch.Tensor, masks: torch.Tensor):
    """The step as tutorials write it; returns a function that takes one."""
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
    """The step as train.py takes it."""
    device = pick_device("cpu")
    dtype = pick_dtype("auto", device)
    cli.keep_freed_memory()
    model.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(model, 1e-3, 1e-4)
    scheduler, scaler = make_scheduler(optimizer, 2, 1000), make_scaler(device, dtype)
    trainer = Trainer(model, optimizer, scheduler, scaler, DeepSupervision(), dtype)
    return lambda: trainer.train_step([(pictures, masks, None)])


def measure(side: str, args: argparse.Namespace) -> None:
    """Print one side's median seconds a step and peak memory in GB, as JSON."""
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # Python and its libraries
    size = (args.size, args.size)
    pictures = torch.randint(0, 256, (args.batch_size, 3, *size), dtype=torch.uint8)
    masks = torch.randint(0, 2, (args.batch_size, 1, *size), dtype=torch.uint8)
    step = {"tutorial": tutorial_step, "ours": our_step}[side](
        build_model(args.model).train(), pictures, masks
    )
    step()
    times = []
    for _ in range(args.steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({"seconds": statistics.median(times), "peak": peak, "step": peak - before}))


def parse_args() -> argparse.Namespace:
    """The flags of the benchmark."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--model", choices=NETWORKS, default="u2net_lite", help="network")
    parser.add_argument("--batch-size", type=cli.positive, default=4, help="pictures")
    parser.add_argument("--size", type=cli.positive, default=288, help="side of the pictures")
    parser.add_argument("--steps", type=cli.positive, default=5, help="timed steps of a round")
    parser.add_argument("--rounds", type=cli.positive, default=3, help="processes of each side")
    parser.add_argument("--side", choices=("tutorial", "ours"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run both sides in turn and print their medians and ratios."""
    args = parse_args()
    if args.side:
        measure(args.side, args)
        return
    results: dict[str, list[dict[str, float]]] = {"tutorial": [], "ours": []}
    for _ in range(args.rounds):
        for side, rounds in results.items():
            command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], "--side", side]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rounds.append(json.loads(output.splitlines()[-1]))
    print(
        f"{args.model}, batch {args.batch_size} at {args.size}^2, {torch.get_num_threads()} cores"
    )
    medians = {
        side: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for side, rounds in results.items()
    }
    for side, values in medians.items():
        print(f"{side:9s} {values['seconds']:7.2f} s a step  {values['peak']:5.2f} GB peak, "
              f"{values['step']:5.2f} GB of it by the network and its step")  # fmt: skip
    base, ours = medians["tutorial"], medians["ours"]
    print(f"ours is {base['seconds'] / ours['seconds']:.2f} x as fast, in "
          f"{ours['step'] / base['step']:.2f} x the step's memory "
          f"({ours['peak'] / base['peak']:.2f} x the process's)")  # fmt: skip


if __name__ == "__main__":
    main()
