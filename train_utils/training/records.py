"""What a run leaves to look at: arguments, log, curves, sample pictures, TensorBoard's events."""

import csv
import json
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from src import UserError
from src.files import atomic_path, clear_temporary, save_json

try:
    import resource
except ImportError:  # Windows
    resource = None

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator


def write_args(folder: Path, args: dict[str, Any], launch: str | None = None) -> None:
    """``args.json``: every flag of the run, the versions and the git commit it ran with, and the
    launch of torchrun that it belongs to.
    """
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": git_commit(),
    }
    save_json({**args, "versions": versions, "launch": launch}, folder / "args.json")


def begun_by(folder: Path, launch: str | None) -> bool:
    """Whether :func:`write_args` noted this launch there."""
    try:
        noted = json.loads((folder / "args.json").read_text(encoding="utf-8"))["launch"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return launch is not None and noted == launch


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` where files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory(device: torch.device) -> float:
    """The most that was in use so far, in MiB: of the GPU, or else of the process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Records:
    """The run's log.csv, curves.png, samples/ and tensorboard/, brought forward step by step.

    Args:
        folder: of the run.
        epoch: how many epochs are behind. What a run that went further than its last checkpoint
            left of later ones is dropped, so that nothing is told twice.
        update: how many optimizer steps are behind.
    """

    def __init__(self, folder: Path, epoch: int, update: int) -> None:
        self.folder = folder
        for written in (folder, folder / "samples"):
            clear_temporary(written)
        self.log = Log(folder / "log.csv", epoch)
        self.board = SummaryWriter(folder / "tensorboard", purge_step=update + 1)

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Curves of TensorBoard alone: by name, after an optimizer step."""
        for name, value in values.items():
            self.board.add_scalar(name, value, update)

    def epoch(self, row: dict[str, Any], update: int) -> None:
        """A row of the log, in log.csv, curves.png and TensorBoard."""
        with _kept_from_ending_the_run():
            self.log.append(row)
            draw_curves(self.log, self.folder / "curves.png")
        self.scalars({f"epoch/{k}": v for k, v in row.items()}, update)
        self.board.flush()

    def samples(
        self, triples: Iterable[tuple[Tensor, Tensor, Tensor]], epoch: int, update: int
    ) -> None:
        """A sheet of (picture 3×S×S uint8, mask 3×H×W, map 3×S×S, both in [0, 1]), two in a row."""
        tiles = []
        for picture, mask, found in triples:
            mask = F.interpolate(mask[None], size=found.shape[-2:])[0]
            tiles += [picture.float() / 255, mask, found]
        sheet = make_grid(tiles, nrow=6, padding=4, pad_value=1.0)
        path = self.folder / "samples" / f"epoch_{epoch:04d}.png"
        with _kept_from_ending_the_run(), atomic_path(path) as temporary:
            save_image(sheet, temporary, format="png")
        self.board.add_image("samples: picture, mask, map", sheet, update)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        self.board.close()


@contextmanager
def _kept_from_ending_the_run() -> Iterator[None]:
    """Windows won't replace a file that is open in a viewer: no reason to lose an epoch."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"{error.filename}: not written ({error.strerror}); is it open elsewhere?")


class Log:
    """``log.csv``, one row an epoch; empty cells where an epoch was not evaluated.

    It holds nothing of time and machine: a repeated or resumed run writes the same bytes.

    Args:
        path: of the file.
        epoch: how many epochs are behind; later rows of the file are dropped.
    """

    def __init__(self, path: Path, epoch: int = 0) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if epoch and path.is_file():
            try:
                with path.open(newline="", encoding="utf-8") as file:
                    rows = list(csv.DictReader(file))
                self.rows = [row for row in rows if int(row["epoch"]) <= epoch]
            except (KeyError, TypeError, ValueError, csv.Error):
                raise UserError(
                    f"{path}: not the log that the run wrote (was it saved by another program?); "
                    "put it back, or move it away"
                ) from None

    def append(self, row: dict[str, Any]) -> None:
        """Add an epoch's row; floats keep six significant digits."""
        known = {name: value for name, value in row.items() if value == value}  # nan: left empty
        self.rows.append(
            {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in known.items()}
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
    """``curves.png``: the loss, and of the held-out pictures the scores and the error, each with
    its best value in the legend; without and with the moving average.
    """
    scores = [
        prefix + n for n in ("max_f", "mean_iou", "pixel_accuracy") for prefix in ("", "ema_")
    ]
    panels = (
        ("loss", ["loss", "loss_fused"], min),
        ("scores of the held-out pictures", scores, max),
        ("mean absolute error of the same", ["mae", "ema_mae"], min),
    )
    panels = [panel for panel in panels if any(log.column(name)[1] for name in panel[1])]
    size = (4.5 * max(1, len(panels)), 4)
    figure, row = plt.subplots(
        1, len(panels) or 1, figsize=size, layout="constrained", squeeze=False
    )
    for axes, (title, names, best) in zip(row[0], panels, strict=False):
        for name in names:
            epochs, values = log.column(name)
            if values:
                axes.plot(epochs, values, marker=".", label=f"{name} (best {best(values):.3f})")
        axes.set(title=title, xlabel="epoch", yscale="log" if title == "loss" else "linear")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(which="both", alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)
