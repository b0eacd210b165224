"""The toolkit's speed on this machine's CPU, next to its peers, in one table.

    python -m benchmarks                              # lite and full: 15 minutes on 2 cores
    python -m benchmarks --networks u2net_lite --json speed.json

Inference (benchmarks/compute/inference.py): milliseconds per image at 320² with batches of 1 and 8,
the speed relative to the tutorials' method, the share of the FLOP/s that one large matrix product
reaches here at the same precision, and the mean difference of the maps from the tutorials' in
float32. Training (benchmarks/compute/train_step.py): a step with batch 4 at 288². All take turns;
figures are medians. OpenVINO and ONNX Runtime are included if installed.
"""

import argparse
import json

import torch

from src import NETWORKS
from train_utils import cli

from .compute import inference, train_step

INFERENCE = (
    "| {network} | {batch} | {way} | {precision} | {ms_per_picture:.0f} | {times_tutorial:.2f} | "
    "{of_matrix_limit:.0%} | {mean_off:.0e} |"
)
TRAINING = "| {network} | {way} | {seconds:.2f} | {times_tutorial:.2f} | {step:.2f} | {peak:.2f} |"


def main() -> None:
    """Measure, print both tables, write the JSON file."""
    args = parse_args()
    table = {"torch": torch.__version__, "cores": torch.get_num_threads()}
    table |= {"inference": [], "training": []}
    print(f"torch {table['torch']}, {table['cores']} cores\n")
    print(
        "| network | batch | method | precision | ms per image | × tutorial | of the limit | "
        "difference |"
    )
    print("|---|---:|---|---|---:|---:|---:|---:|")
    for network in args.networks:
        for row in inference.measure(network, (1, 8), 320, args.rounds):
            table["inference"].append(row)
            print(INFERENCE.format(**row), flush=True)
    print("\n| network | method | s per step | × tutorial | GB by the step | GB in total |")
    print("|---|---|---:|---:|---:|---:|")
    for network in args.networks:
        for row in train_step.compare(network, rounds=max(1, args.rounds // 2)):
            table["training"].append(row)
            print(TRAINING.format(**row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(table, indent=1))


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = cli.make_parser(__doc__)
    networks = ("u2net_lite", "u2net_full")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=networks, metavar="N")
    parser.add_argument(
        "--rounds", type=cli.positive, default=5, metavar="N", help="rounds for each"
    )
    parser.add_argument(
        "--json", type=cli.file_named(".json"), metavar="F", help="also write the figures here"
    )
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
