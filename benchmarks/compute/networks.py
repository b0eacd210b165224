"""The cost of each network: parameters, operations, time and memory for one image.

    python -m benchmarks.compute.networks                     # all of them, at 320^2, in Predictor
    python -m benchmarks.compute.networks --size 288 --rounds 20

Each network runs in its own process, as in Predictor: batch norm folded, channels last, bf16 where
that is fast. Time is the best of several images, which other work on the machine affects least.
Memory is the growth of the process's peak resident size by network and images. Operations are those
of convolutions, counting a multiply-add as two; unet's are for the mirrored image. The table is in
Markdown.
"""

import argparse
import json
import subprocess
import sys

import torch
from torch.utils.flop_counter import FlopCounterMode

from src import NETWORKS, Predictor, build_model
from src.device import keep_freed_memory
from train_utils import cli

from ..timing import peak_memory, seconds


def measure(name: str, size: int, rounds: int) -> dict[str, float]:
    """Measure one network in this process."""
    keep_freed_memory()
    with torch.device("meta"):
        network = build_model(name).eval()
        parameters = sum(p.numel() for p in network.parameters())
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, size, size))
    before = peak_memory()
    predictor = Predictor(build_model(name), size, "cpu")
    picture = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    predictor.maps(picture)
    times = [seconds(lambda: predictor.maps(picture)) for _ in range(rounds)]
    grown = peak_memory() - before
    return {
        "parameters": parameters / 1e6,
        "operations": counter.get_total_flops() / 1e9,
        "seconds": min(times),
        "memory": grown,
    }


def parse_args() -> argparse.Namespace:
    """The flags of the benchmark."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--size", type=cli.positive, default=320, help="side of the image")
    parser.add_argument("--rounds", type=cli.positive, default=5, help="timed images")
    parser.add_argument("--one", choices=NETWORKS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Print a row for each network."""
    args = parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.size, args.rounds)))
        return
    print(f"| network | parameters | GFLOP at {args.size}² | s per image | memory |")
    print("|---|---:|---:|---:|---:|")
    for name in NETWORKS:
        module = "benchmarks.compute.networks"
        command = [sys.executable, "-m", module, *sys.argv[1:], "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(done.returncode)  # it has printed the reason
        row = json.loads(done.stdout.splitlines()[-1])
        print(f"| {name} | {row['parameters']:.2f} M | {row['operations']:.1f} | "
              f"{row['seconds']:.3f} | {row['memory']:.2f} GB |", flush=True)  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
