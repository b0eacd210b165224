"""``log.csv`` and ``curves.png``."""

import csv
from pathlib import Path
from typing import Any

from src import UserError
from src.files import atomic_path


class Log:
    """``log.csv``, one row per epoch, with empty cells where an epoch was not evaluated.

    It has no times or machine details: a repeated or resumed run writes the same bytes.

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
    """Draw ``curves.png``: the loss, and the scores and the error on the held-out images, with and
    without the moving average; each has its best value in the legend.
    """
    from matplotlib.figure import Figure  # without pyplot, which keeps figures and picks a GUI
    from matplotlib.ticker import MaxNLocator

    measures = ("max_f", "mean_iou", "pixel_accuracy")
    scores = [prefix + name for name in measures for prefix in ("", "ema_")]
    answer = [name for name in ("loss_fused", "loss_side1") if log.column(name)[1]]
    panels = (
        ("loss", ["loss", *answer[:1]], min),
        ("scores on the held-out images", scores, max),
        ("mean absolute error on the held-out images", ["mae", "ema_mae"], min),
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
