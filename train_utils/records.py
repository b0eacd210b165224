"""The run's folder: arguments, log, curves and sample pictures."""

import csv
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.utils import make_grid, save_image

from src.files import atomic_path, save_json

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def write_args(folder: Path, args: dict[str, Any]) -> None:
    """``args.json``: every flag of the run, and the versions it ran with."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    save_json({**args, "versions": versions}, folder / "args.json")


class Log:
    """``log.csv``, one row an epoch; empty cells where an epoch was not evaluated.

    Args:
        path: of the file.
        epoch: how many epochs are behind: rows after them, left by a run that went further than
            its last checkpoint, are dropped.
    """

    def __init__(self, path: Path, epoch: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if epoch and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epoch]

    def append(self, row: dict[str, Any]) -> None:
        """Add an epoch's row; floats keep six significant digits."""
        self.rows.append(
            {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
        )
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """The epochs that have a value under ``name``, and the values."""
        pairs = [(int(r["epoch"]), float(r[name])) for r in self.rows if r.get(name)]
        return [e for e, _ in pairs], [v for _, v in pairs]


def draw_curves(log: Log, path: Path) -> None:
    """``curves.png``: the loss, and the scores with their best value marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for name in ("loss", "loss_fused"):
        left.plot(*log.column(name), label=name.replace("_", " "))
    left.set(xlabel="epoch", ylabel="binary cross-entropy", yscale="log")
    for name, best in (("max_f", max), ("ema_max_f", max), ("mae", min), ("ema_mae", min)):
        epochs, values = log.column(name)
        if values:
            label = f"{name} (best {best(values):.3f})"
            right.plot(epochs, values, marker=".", label=label)
    right.set(xlabel="epoch", ylabel="score on the test split", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def save_samples(triples: Iterable[tuple[Tensor, Tensor, Tensor]], path: Path) -> None:
    """A sheet with a row for each of (picture 3×S×S uint8, mask H×W {0, 1}, map S×S in [0, 1])."""
    tiles = []
    for picture, mask, saliency in triples:
        mask = F.interpolate(mask[None, None].float(), size=saliency.shape)[0]
        tiles += [picture.float() / 255, mask.expand(3, -1, -1), saliency.expand(3, -1, -1)]
    with atomic_path(path) as temporary:
        save_image(make_grid(tiles, nrow=6, padding=4, pad_value=1.0), temporary, format="png")
