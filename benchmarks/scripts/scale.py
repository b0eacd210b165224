"""How costs scale with the number and size of images, and with the number of processes.

    python -m benchmarks.scripts.scale --plot scale.png          # five minutes on two cores
    python -m benchmarks.scripts.scale --names 1000000           # only listing, with empty files

- images: predict.py's pipeline, from files to masks, for more and more images;
- size: Predictor's maps for one image, at sides from 128 to 640;
- names: how long predict.py takes to list images first, and how much memory the list takes;
- processes: training by torchrun on gloo, from one process to one per core, one thread each.

Each plot has a line from its first point in proportion to the work. The exponent is printed: with
1, time grows in proportion to the work.
"""

import math
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import torch

from predict import list_jobs, parse_args
from predict import main as predict
from src import Predictor, build_model, save_model
from train_utils import cli
from train_utils.data import synthetic
from train_utils.shares import Earlier

from ..timing import in_turn, peak_memory, seconds

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Points = dict[float, float]  # amount of work → seconds


def main() -> None:
    """Measure, print a line for each, and plot all but names."""
    parser = cli.make_parser(__doc__)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--plot", type=cli.file_named(".png", ".svg"), metavar="F")
    text = "list N empty files, a thousand per folder, in the temporary folder ($TMPDIR)"
    kind.add_argument("--names", type=cli.positive, metavar="N", help=text)
    args = parser.parse_args()
    if args.names:
        return by_names(args.names)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic.write_dataset(folder, train=128, test=2, size=300, seed=0)
        found = {
            "images": by_count(folder),
            "megapixels of one image": by_size(),
            "images trained on, by processes": by_processes(folder),
        }
    figure, axes = plt.subplots(1, len(found), figsize=(12, 3.6), layout="constrained")
    for axis, (label, points) in zip(axes, found.items(), strict=True):
        draw(axis, label, points)
    figure.savefig(args.plot, dpi=110)


def by_names(count: int) -> None:
    """Time and memory of listing images, first with no results present, then with all."""
    with tempfile.TemporaryDirectory() as name:
        inputs, output = Path(name, "in"), Path(name, "out")
        argv = [str(inputs), "--recursive", "--output", str(output)]
        make_names(inputs, count, ".jpg")
        for state, flags in (("new", []), ("all done", ["--skip-existing"])):
            before, began = peak_memory(), time.perf_counter()
            processor = time.process_time()
            args = parse_args([*argv, *flags])
            jobs = list_jobs(args, Earlier()).jobs
            took, used = time.perf_counter() - began, time.process_time() - processor
            share = len(pickle.dumps(jobs.share(0, 8))) / 1e6
            print(
                f"{len(jobs)} names, {state}: {took:.1f} s, CPU {used:.1f} s, memory "
                f"+{1000 * (peak_memory() - before):.0f} MB; to each of 8 ranks {share:.2f} MB",
                flush=True,
            )
            make_names(output, count, ".png")


def make_names(folder: Path, count: int, suffix: str) -> None:
    """Create ``count`` empty files, a thousand per folder."""
    for start in range(0, count, 1000):
        inside = folder / f"{start // 100_000:03}" / f"{start // 1000:06}"
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(start, min(start + 1000, count)):
            (inside / f"image_{number:09}{suffix}").touch()


def by_count(folder: Path) -> Points:
    """Seconds that predict.py takes for 16 to 128 files, without start-up."""
    weights = folder / "lite.safetensors"
    network = build_model("u2net_lite")
    network.img_size = 128
    save_model(network, weights)
    files = sorted((folder / "DUTS-TR" / "DUTS-TR-Image").iterdir())

    def run(count: int) -> None:
        out = ["--weights", str(weights), "--output", str(folder / f"masks{count}")]
        if predict([*map(str, files[:count]), *out]):
            raise RuntimeError("predict.py failed")

    run(2)
    return {count: seconds(lambda count=count: run(count)) for count in (16, 32, 64, 128)}


def by_size() -> Points:
    """Seconds for one image's map, by megapixels."""
    network = build_model("u2net_lite")
    runs = {}
    for side in (128, 192, 256, 320, 448, 640):
        picture = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
        predictor = Predictor(network, side, "cpu")
        runs[side * side / 1e6] = lambda p=predictor, x=picture: p.maps(x)
    return in_turn(runs, rounds=5)


def by_processes(folder: Path) -> Points:
    """Seconds per image of all processes together, by their number."""
    points: Points = {}
    for world in range(1, (os.cpu_count() or 1) + 1):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={world}"]
        command += ["train_multi_GPU.py", "--data-path", str(folder), "--model", "u2net_lite"]
        command += [
            "--img-size",
            "128",
            "--crop-size",
            "128",
            "--batch-size",
            "4",
            "--workers",
            "0",
        ]
        command += ["--epochs", "2", "--eval-interval", "2", "--device", "cpu"]
        command += ["--output-dir", str(folder / f"run{world}")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        rates = re.findall(r"([\d.]+) images/s", run.stdout + run.stderr)
        if run.returncode or not rates:
            raise RuntimeError(f"{world} processes: {run.stderr[-1000:]}")
        points[world] = world / float(rates[-1])
    return points


def draw(axis: plt.Axes, label: str, points: Points) -> None:
    """Plot seconds over work and a straight line from the first point; print the exponent."""
    work, taken = zip(*sorted(points.items()), strict=True)
    grows = label != "images trained on, by processes"
    axis.plot(work, taken, "o-", label="measured")
    axis.plot(
        work, [taken[0] * (w / work[0] if grows else 1) for w in work], "--", label="its work"
    )
    axis.set(
        xlabel="processes" if not grows else label, ylabel="seconds", ylim=(0, 1.1 * max(taken))
    )
    axis.legend()
    exponent = math.log(taken[-1] / taken[0]) / math.log(work[-1] / work[0]) if work[1:] else 0.0
    axis.set_title(f"exponent {exponent:.2f}" if grows else "seconds of a core for an image")
    each = ", ".join(f"{w:g}: {t:.3f} s" for w, t in zip(work, taken, strict=True))
    print(f"{label}: exponent {exponent:.2f} ({each})", flush=True)


if __name__ == "__main__":
    cli.run(main)
