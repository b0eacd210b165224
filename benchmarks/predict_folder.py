"""Masks for a folder of images: predict.py against rembg's folder command, with the same weights.

    python -m venv rembg && rembg/bin/pip install 'rembg[cpu,cli]==2.0.86'
    python -m benchmarks.predict_folder ECSSD/images --weights u2netp.pth --rembg rembg/bin/rembg

Both run as from a shell, taking turns, start-up included. rembg gets the weights as ONNX from
export.py, in its u2net_custom session, and writes masks only. Time is wall time; next to it is CPU
time, which other programs on the machine affect less.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from src.pictures.images import list_images
from train_utils import cli


class Run(NamedTuple):
    """The time and memory of one command."""

    wall: float  # seconds
    cpu: float  # seconds, of all its cores
    memory: float  # MB at the peak


def main(argv: list[str] | None = None) -> None:
    """Parse the flags, link the images, run both in turns, print medians and ratios."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("images", type=Path, help="a folder of images")
    add("--weights", type=Path, required=True, metavar="W", help="weights of a network for 320²")
    add("--int8", type=Path, metavar="F.onnx", help="int8 export of the weights, for predict.py")
    add("--rembg", type=Path, required=True, metavar="FILE", help="the rembg command")
    add("--count", type=cli.positive, default=200, help="maximum number of images")
    add("--rounds", type=cli.positive, default=3, help="runs of each")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Run both commands on the same links to images."""
    pictures = list_images(args.images)[: args.count]
    (folder / "in").mkdir()
    for path in pictures:
        (folder / "in" / path.name).symlink_to(path.resolve())
    theirs, env = rembg_command(args.rembg, args.weights, folder)
    theirs.append(folder / "in")
    size = ["--img-size", 320]  # rembg's size, whatever the weights' own
    weights = args.int8 or args.weights
    ours = [sys.executable, "predict.py", folder / "in", "--weights", weights, *size, "--output"]
    runs: dict[str, list[Run]] = {"rembg": [], "predict.py": []}
    for _ in range(args.rounds):
        for name, command in (("rembg", theirs), ("predict.py", ours)):
            runs[name].append(measure([*command, folder / "out"], env))
            if (written := len(list((folder / "out").iterdir()))) != len(pictures):
                sys.exit(f"{name} wrote {written} of {len(pictures)} masks")
            shutil.rmtree(folder / "out")
    report(runs, len(pictures))


def rembg_command(rembg: Path, weights: Path, folder: Path) -> tuple[list[object], dict[str, str]]:
    """rembg's folder command for these weights, without the folders, and its environment."""
    model = folder / "home" / "lite.onnx"
    script = [sys.executable, "export.py", "--weights", weights, "--output", model]
    subprocess.run([str(part) for part in script], check=True, stdout=subprocess.DEVNULL)
    # rembg loads only files in its own folder.
    env = {**os.environ, "U2NET_HOME": str(model.parent), "REMBG_HOME": str(model.parent)}
    extra = json.dumps({"model_path": str(model)})
    return [rembg, "p", "-m", "u2net_custom", "-om", "-x", extra], env


def measure(command: list[object], env: dict[str, str] | None) -> Run:
    """Run a command and measure it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = process.stdout.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed:\n{said[-2000:]}")
    took = time.perf_counter() - began
    return Run(took, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def report(runs: dict[str, list[Run]], count: int) -> None:
    """Print medians, and ratios within each turn."""
    print(f"{count} images, {os.cpu_count()} cores, median of {len(runs['rembg'])}")
    print("| | s | ms per image | CPU, s | memory, MB |\n|---|---:|---:|---:|---:|")
    for name, each in runs.items():
        wall, cpu, memory = (median(values) for values in zip(*each, strict=True))
        print(f"| {name} | {wall:.1f} | {1000 * wall / count:.0f} | {cpu:.1f} | {memory:.0f} |")
    for i, what in enumerate(("time", "CPU time", "memory")):
        pairs = zip(runs["predict.py"], runs["rembg"], strict=True)
        ratios = sorted(ours[i] / theirs[i] for ours, theirs in pairs)
        print(f"{what}: {median(ratios):.2f} of rembg's ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    cli.run(main)
