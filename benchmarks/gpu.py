"""Training and inference on a GPU: the tutorials' method with --amp against ours, in one table.

    python -m benchmarks.gpu                                   # under 8 minutes
    python -m benchmarks.gpu --device cpu --size 96 --batch-sizes 2 --seconds 1  # a trial

Images per second and peak memory for each network, batch size and method. The tutorials' method is
NCHW and autocast to float16 with a GradScaler; ours is Trainer's step and Predictor's maps, in bf16
and channels last; compiled is ours with torch.compile, at the last batch size, only on a GPU. The
limit next to them is the roofline: each operation's FLOPs at the rate of a large matrix product, or
its bytes at that of a large copy, whichever takes longer. Last, the loader: decoded and augmented
pairs per second with all cores, against what the fastest training step consumes.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from my_dataset import SegmentationDataset, find_pairs
from src import NETWORKS, Predictor, build_model
from src.device import pick_device, pick_dtype
from src.inference.preprocess import normalize
from train_utils import cli
from train_utils.data import synthetic
from train_utils.data.loaders import EpochSampler, train_loader
from transforms import TrainPreset

from .compute.train_step import make_trainer
from .roofline import Roofline
from .timing import byte_rate, matrix_limit

ROW = "| {network} | {work} | {batch} | {way} | {rate:.1f} | {ratio:.2f} | {gb:.1f} | {limit:.1f} |"


def main() -> None:
    """Measure, print, write the JSON file."""
    args = parse_args()
    device = pick_device(args.device)
    dtype = pick_dtype("auto", device)
    rates = matrix_limit(dtype, str(device)), byte_rate(str(device))
    print(f"torch {torch.__version__}, {_name(device)}: {dtype} {rates[0] / 1e12:.1f} TFLOP/s, "
          f"{rates[1] / 1e12:.2f} TB/s\n")  # fmt: skip
    print("| network | work | batch | method | images/s | × tutorial | GB | at the limit |")
    print("|---|---|---:|---|---:|---:|---:|---:|")
    rows = []
    for network in args.networks:
        for work in ("training", "inference"):
            for row in _rows(network, work, args, device):
                row["limit"] = _limit(network, work, args.size, dtype, rates)
                rows.append(row)
                print(ROW.format(**row), flush=True)
    loaded = load(args.size, args.seconds)
    eaten = max(row["rate"] for row in rows if row["work"] == "training")
    print(f"\nloader with {os.cpu_count()} cores: {loaded:.0f} pairs/s, {loaded / eaten:.1f} x "
          "what the fastest training step consumes")  # fmt: skip
    if args.json:
        table = {"rows": rows, "loader": loaded, "rates": rates}
        args.json.write_text(json.dumps(table, indent=1))


def _rows(
    network: str, work: str, args: argparse.Namespace, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Rows for one network and one kind of work, for each batch size and method."""
    for batch in args.batch_sizes:
        ways = dict(WAYS[work])
        if device.type == "cuda" and batch == args.batch_sizes[-1]:
            ways["compiled"] = partial(ways["ours"], compiled=True)
        base = 0.0
        for way, make in ways.items():
            rate, gb = _measure(make, network, batch, args.size, device, args.seconds)
            base = base or rate
            row = {"network": network, "work": work, "batch": batch, "way": way}
            yield row | {"rate": rate, "ratio": rate / base, "gb": gb}


def parse_args() -> argparse.Namespace:
    """The flags."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    networks = ("u2net_lite", "u2net_full")
    add("--networks", nargs="+", choices=NETWORKS, default=networks, metavar="N", help="networks")
    add("--batch-sizes", type=cli.positive, nargs="+", default=[16, 64], metavar="N")
    add("--size", type=cli.positive, default=320, metavar="PX", help="side of all images")
    add("--seconds", type=cli.positive, default=4, metavar="S", help="seconds to time each method")
    add("--device", default="cuda", help="cuda, cuda:1, or cpu to try out the script")
    add("--json", type=cli.file_named(".json"), metavar="F", help="also write the figures here")
    return parser.parse_args()


def tutorial_training(model: nn.Module, pictures: Tensor, masks: Tensor) -> Callable[[], object]:
    """A training step as in tutorials, with --amp."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    kind = pictures.device.type
    half = torch.float16 if kind == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(kind, enabled=kind == "cuda")
    x, y = normalize(pictures).contiguous(), masks.float()

    def step() -> None:
        with torch.autocast(kind, half):
            loss = sum(F.binary_cross_entropy_with_logits(z, y) for z in model.train()(x))
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def our_training(
    model: nn.Module, pictures: Tensor, masks: Tensor, compiled: bool = False
) -> Callable[[], object]:
    """A training step as in train.py, with --compile if ``compiled``."""
    trainer = make_trainer(model.train(), pictures.device, compiled)
    return lambda: trainer.step([(pictures, masks, torch.arange(len(pictures)))])


def tutorial_inference(model: nn.Module, pictures: Tensor, _: Tensor) -> Callable[[], object]:
    """Maps as in tutorials, with --amp."""
    kind, x = pictures.device.type, normalize(pictures).contiguous()
    half = torch.float16 if kind == "cuda" else torch.bfloat16

    @torch.no_grad()
    def run() -> None:
        with torch.autocast(kind, half):
            model.eval()(x)

    return run


def our_inference(
    model: nn.Module, pictures: Tensor, _: Tensor, compiled: bool = False
) -> Callable[[], object]:
    """Maps as in predict.py."""
    predictor = Predictor(model, pictures.shape[-1], pictures.device)
    if compiled:
        predictor.model.compile(mode="reduce-overhead")  # CUDA graphs
    return lambda: predictor.maps(pictures)


WAYS = {
    "training": {"tutorial": tutorial_training, "ours": our_training},
    "inference": {"tutorial": tutorial_inference, "ours": our_inference},
}


def _measure(
    make: Callable, network: str, batch: int, size: int, device: torch.device, duration: float
) -> tuple[float, float]:
    """Images/s and GB of one method, after three warm-up calls."""
    torch.manual_seed(0)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    pictures = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    masks = torch.randint(0, 2, (batch, 1, size, size), dtype=torch.uint8, device=device)
    run = make(build_model(network).to(device), pictures, masks)
    for _ in range(3):
        run()
    wait()
    calls, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < duration:
        for _ in range(3):
            run()
        wait()
        calls += 3
    gb = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    return calls * batch / taken, gb


def _limit(
    network: str, work: str, size: int, dtype: torch.dtype, rates: tuple[float, float]
) -> float:
    """Images/s at the roofline, counted for a batch of eight."""
    with torch.device("meta"):
        model = build_model(network).train(work == "training")
        x = torch.zeros(8, 3, size, size)
        model, x = model.to(dtype), x.to(dtype)
        with Roofline() as roofline:
            if work == "inference":
                with torch.no_grad():
                    model.fuse()(x)
            else:
                mask = torch.zeros(8, 1, size, size)
                sum(
                    F.binary_cross_entropy_with_logits(y.float(), mask) for y in model(x)
                ).backward()
    return 8 / roofline.seconds(*rates)


def load(size: int, duration: float) -> float:
    """Pairs/s from files of 400 pixels, with one process per core."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic.write_dataset(Path(folder), train=64, test=1, size=400, seed=0)
        pairs = find_pairs(Path(folder), "train").pairs * 500
        data = SegmentationDataset(pairs, TrainPreset(size, size * 9 // 10))
        batches = iter(train_loader(data, EpochSampler([len(data)], 16, 0), os.cpu_count() or 1))
        for _ in range(2 * (os.cpu_count() or 1)):  # until all processes are working
            next(batches)
        count, start = 0, time.perf_counter()
        while (taken := time.perf_counter() - start) < duration:
            count += len(next(batches)[0])
    return count / taken


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    cli.run(main)
