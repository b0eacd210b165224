"""The whole predict.py process for one image, against a plain torch script.

    python -m benchmarks.scripts.startup                       # the lite weights in weights/, a generated image
    python -m benchmarks.scripts.startup --weights u2net.pth --picture photo.jpg --rounds 9

The script imports torch, loads the same weights from a torch file into the same network, built as
usual, and computes one map of noise in float32, without an image. The processes run in turns; the
table has medians of wall time and of CPU time, which other programs on the machine affect less, and
of each turn's ratios.
"""  # noqa: E501

import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from benchmarks.predict_folder import Run, measure
from src import UserError, load_model, save_model
from train_utils import cli

# src/__init__.py would import all of the library.
LEAST = """
import sys, types
import torch
sys.modules["src"] = types.ModuleType("src")
sys.modules["src"].__path__ = ["src"]
from src.networks.config import U2NetConfig
from src.networks.u2net import U2Net
content = torch.load(sys.argv[1], weights_only=True)
network = U2Net(U2NetConfig.from_dict(content["config"]))
network.load_state_dict(content["model"])
with torch.inference_mode():
    network.eval()(torch.rand(1, 3, content["img_size"], content["img_size"]))
"""


def main(argv: list[str] | None = None) -> None:
    """Parse the flags, make the inputs, run the processes in turns, print the table."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="instead of a generated image")
    parser.add_argument("--rounds", type=cli.positive, default=7, help="runs of each")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        picture, plain = args.picture or Path(folder, "noise.jpg"), Path(folder, "plain.pt")
        if not args.picture:
            noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
            Image.fromarray(noise).save(picture)
        network = load_model(args.weights)
        if args.img_size and not isinstance(args.img_size, int):
            raise UserError("expected one side, of a square", "img_size", args.img_size)
        network.img_size = args.img_size or network.img_size
        save_model(network, plain)
        ours = [sys.executable, "predict.py", picture, "--weights", args.weights]
        ours += [
            "--img-size",
            network.img_size,
            "--device",
            "cpu",
            "--output",
            f"{folder}/mask.png",
        ]
        report(run({
            "import torch": [sys.executable, "-c", "import torch"],
            "import torch, one map": [sys.executable, "-c", LEAST, plain],
            "predict.py --amp off": [*ours, "--amp", "off"],
            "predict.py": ours,
            "predict.py --help": [sys.executable, "predict.py", "--help"],
        }, args.rounds))  # fmt: skip


def run(commands: dict[str, list[object]], rounds: int) -> dict[str, list[Run]]:
    """Run all commands in turns, after a first turn to fill the disk cache."""
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for i in range(rounds + 1):
        for name, command in commands.items():
            took = measure(command, None)
            if i:
                runs[name].append(took)
    return runs


def report(runs: dict[str, list[Run]]) -> None:
    """Print medians, and ratios to the plain script."""
    plain = runs["import torch, one map"]
    print(f"{torch.get_num_threads()} cores, median of {len(plain)}")
    print("| | s | ratio | CPU, s | ratio |\n|---|---:|---:|---:|---:|")
    for name, each in runs.items():
        cells = []
        for what in ("wall", "cpu"):
            took = [getattr(one, what) for one in each]
            ratios = [a / getattr(b, what) for a, b in zip(took, plain, strict=True)]
            cells += [f"{median(took):.2f}", f"{median(ratios):.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    cli.run(main)
