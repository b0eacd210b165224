"""What a run shows and leaves: settings, log, curves, sample sheets, TensorBoard's events, and the
progress bar.

matplotlib, torchvision and TensorBoard take seconds to import, so that is done where they are used.
"""

import csv
import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from src import UserError
from src.files import atomic_path, clear_temporary, save_json

from ..distributed import is_main, sum_over_ranks, world_size
from .losses import map_names
from .trainer import Batch, Trainer

_SHOWN_EVERY = 10  # optimizer steps between updates of what is shown


def write_args(
    folder: Path, args: Mapping[str, Any], launch: str | None = None, resumed: str | None = None
) -> None:
    """Write ``args.json``; of a resumed run, add to it what is now.

    Args:
        folder: the run's.
        args: its settings, to which versions and git commit are added.
        launch: of torchrun, that the run belongs to.
        resumed: after how much of the run it was resumed; None for a new one. What it was started
            with stays as it is; a list under this name gets what has changed since.
    """
    import torchvision

    path = folder / "args.json"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": git_commit(),
    }
    now = {**args, "versions": versions, "launch": launch}
    before = _read_args(path) if resumed else {}
    if before:
        now = json.loads(json.dumps(now, default=str))
        changed = {name: value for name, value in now.items() if before.get(name) != value}
        earlier = before.get("resumed") or []
        now = {**before, "resumed": [*earlier, {"after": resumed, "launch": launch, **changed}]}
    save_json(now, path)


def _read_args(path: Path) -> dict[str, Any]:
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def was_started_by(folder: Path, launch: str | None) -> bool:
    """Whether the run in a folder belongs to this launch, as :func:`write_args` has noted."""
    noted = _read_args(folder / "args.json")
    launches = [entry.get("launch") for entry in (noted, *noted.get("resumed", []))]
    return launch is not None and launch in launches


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
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class _NoBoard:
    """Stands for TensorBoard's writer where that cannot write."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None


class Records:
    """The run's log.csv, curves.png, samples/ and tensorboard/, as it goes on.

    Args:
        folder: of the run.
        epoch: epochs done. What a run that went further than its last checkpoint wrote of later
            ones is dropped, so that nothing is there twice.
        update: optimizer steps done.
    """

    def __init__(self, folder: Path, epoch: int, update: int) -> None:
        self.folder = folder
        from torch.utils.tensorboard import SummaryWriter

        clear_temporary(folder)
        clear_temporary(folder / "samples")
        self.log = Log(folder / "log.csv", epoch)
        self.board: Any = _NoBoard()
        try:
            self.board = SummaryWriter(folder / "tensorboard", purge_step=update + 1)
        except UnicodeEncodeError:
            print(f"{folder}: no TensorBoard events, as its name is not UTF-8", flush=True)

    def scalars(self, values: Mapping[str, float], update: int) -> None:
        """Add points to TensorBoard's curves, by name."""
        for name, value in values.items():
            self.board.add_scalar(name, value, update)

    def epoch(self, row: dict[str, Any], update: int) -> None:
        """A row of the log, in log.csv, curves.png and TensorBoard."""
        with _file_errors_shown():
            self.log.append(row)
            draw_curves(self.log, self.folder / "curves.png")
        self.scalars({f"epoch/{k}": v for k, v in row.items()}, update)
        self.board.flush()

    def samples(
        self, triples: Iterable[tuple[Tensor, Tensor, Tensor]], epoch: int, update: int
    ) -> None:
        """A sheet of (image 3×S×S uint8, mask 3×H×W, map 3×S×S, both in [0, 1]), two in a row."""
        from torchvision.utils import make_grid, save_image

        tiles = []
        for image, mask, found in triples:
            mask = F.interpolate(mask[None], size=found.shape[-2:])[0]
            tiles += [image.float() / 255, mask, found]
        sheet = make_grid(tiles, nrow=6, padding=4, pad_value=1.0)
        path = self.folder / "samples" / f"epoch_{epoch:04d}.png"
        with _file_errors_shown(), atomic_path(path) as temporary:
            save_image(sheet, temporary, format="png")
        self.board.add_image("samples: picture, mask, map", sheet, update)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        self.board.close()


@contextmanager
def _file_errors_shown() -> Iterator[None]:
    """Windows won't replace a file that is open in a viewer: no reason to end a run."""
    try:
        yield
    except OSError as error:
        tqdm.write(f"{error.filename}: not written ({error.strerror}); is it open elsewhere?")


class Log:
    """``log.csv``, one row an epoch; empty cells where an epoch was not evaluated.

    It holds nothing of time and machine: a repeated or resumed run writes the same bytes.

    Args:
        path: of the file.
        epoch: epochs done; later rows of the file are dropped.
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
                    "restore it, or move it away"
                ) from None

    def append(self, row: dict[str, Any]) -> None:
        """Add an epoch's row; floats keep six significant digits."""
        known = {k: v for k, v in row.items() if v == v}  # nan: left empty
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
    """Draw ``curves.png``: the loss, and of the held-out images the scores and the error, each with
    its best value in the legend; without and with the moving average.
    """
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and picks a window
    from matplotlib.ticker import MaxNLocator

    measures = ("max_f", "mean_iou", "pixel_accuracy")
    scores = [prefix + name for name in measures for prefix in ("", "ema_")]
    answer = [name for name in ("loss_fused", "loss_side1") if log.column(name)[1]]
    panels = (
        ("loss", ["loss", *answer[:1]], min),
        ("scores of the held-out images", scores, max),
        ("mean absolute error of the same", ["mae", "ema_mae"], min),
    )
    drawn = [panel for panel in panels if any(log.column(name)[1] for name in panel[1])]
    figure = Figure(figsize=(4.5 * max(1, len(drawn)), 4), layout="constrained")
    row = figure.subplots(1, len(drawn) or 1, squeeze=False)[0]
    for axes, (title, names, best) in zip(row, drawn, strict=False):
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


def mean_losses(sums: Tensor, names: Sequence[str] = ()) -> dict[str, float]:
    """The means by name, of :attr:`Trainer.sums` over all ranks.

    Args:
        sums: batches, total loss, each term.
        names: of the terms, :attr:`Trainer.loss_names`; by default those of U²-Net's maps.
    """
    total, *terms = (sums[1:] / sums[0]).tolist()
    columns = [f"loss_{name}" for name in names or map_names(len(terms))]
    return {"loss": total, **dict(zip(columns, terms, strict=True))}


class Progress:
    """The bar of an epoch, and TensorBoard's curves within it: the ranks' mean of the last steps.

    Args:
        trainer: what trains.
        total: batches of an epoch.
        epochs: of the run.
        records: rank 0's, None on the others.
        names: of the loss's terms, see :func:`mean_losses`.
    """

    def __init__(
        self,
        trainer: Trainer,
        total: int,
        epochs: int,
        records: Records | None,
        names: Sequence[str] = (),
    ) -> None:
        self.trainer, self.records, self.names = trainer, records, names
        self.images, self.start = 0, time.perf_counter()  # of the epoch
        self.shown = self.images, self.start, trainer.sums.clone()  # as they were then
        self.bar = tqdm(
            desc=f"epoch {trainer.epoch + 1}/{epochs}",
            total=total,
            initial=trainer.batches_done,
            disable=None if is_main() else True,
            leave=False,
        )

    def close(self) -> None:
        """End the bar."""
        self.bar.close()

    def advance(self, batches: list[Batch]) -> None:
        """Show an optimizer step; on all ranks."""
        self.images += sum(len(batch[0]) for batch in batches) * world_size()
        self.bar.update(len(batches))
        if self.trainer.updates % _SHOWN_EVERY == 0:
            self._show()

    def _show(self) -> None:
        device, lr, now = self.trainer.device, self.trainer.last_lr, time.perf_counter()
        images, then, sums = self.shown
        self.shown = self.images, now, self.trainer.sums.clone()
        losses = mean_losses(sum_over_ranks(self.shown[2] - sums, device), self.names)
        rate = (self.images - images) / (now - then)
        self.bar.set_postfix_str(f"loss {losses['loss']:.3f}, lr {lr:.1e}, {rate:.1f} images/s")
        if self.records:
            values = {"lr": lr, "pictures per s": rate, "peak MiB": peak_memory(device)}
            curves = {f"step/{name}": value for name, value in {**losses, **values}.items()}
            self.records.scalars(curves, self.trainer.updates)

    def speed(self) -> float:
        """Images per second of all ranks since the epoch began, or was continued."""
        return self.images / (time.perf_counter() - self.start)
