"""What validation.py writes: tables and curves."""

import csv
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from src.files import atomic_path

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.font_manager import get_font_names

# Names of files and classes in Chinese, Japanese or Korean: the fonts of common systems.
_EAST_ASIAN = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
)
plt.rcParams["font.family"] = [
    "DejaVu Sans",
    *(name for name in _EAST_ASIAN if name in get_font_names()),
]

COLUMNS = {  # in the order of Qin et al. 2020, tables 3 and 4, then the field's other ones
    "max_f": "maxF",
    "mae": "MAE",
    "weighted_f": "wF",
    "relaxed_boundary_f": "relaxF",
    "s_measure": "S",
    "max_e": "maxE",
    "mean_e": "meanE",
    "adaptive_e": "adpE",
    "max_f_per_image": "maxF/img",
    "mean_f": "meanF",
    "adaptive_f": "adpF",
}


SEMANTIC = {
    "pixel_accuracy": "PA",
    "mean_pixel_accuracy": "mPA",
    "mean_precision": "mP",
    "mean_iou": "mIoU",
    "frequency_weighted_iou": "fwIoU",
    "dice": "Dice",
}


def markdown(rows: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """A Markdown table with aligned columns; numbers to three decimals, as papers round.

    Args:
        rows: of values by key.
        titles: of the keys to show; those that no row has are left out.
    """
    keys = [key for key in titles if any(key in row for row in rows)]
    cells = [[titles[key] for key in keys]]
    cells += [[_cell(row.get(key, "–")) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [not isinstance(rows[0].get(key), str) for key in keys]
    ends = [":" if right else "-" for right in numeric]
    rule = ["-" * (width - 1) + end for width, end in zip(widths, ends, strict=True)]
    lines = [cells[0], rule, *cells[1:]]
    return "\n".join(
        "| " + " | ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ) + " |"
        for line in lines
    )  # fmt: skip


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row per picture, with six decimals; nothing under heads that a picture has not."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
        )


def plot_curves(
    path: Path, curves: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], note: str
) -> None:
    """Precision over recall, and F over the threshold: a line per weights, a row per data set.

    Args:
        path: of the picture, any format that matplotlib writes.
        curves: set → weights → ``precision``, ``recall`` and ``f`` at thresholds 255 … 0.
        note: how maps were treated, for the title.
    """
    figure, axes = plt.subplots(
        len(curves), 2, figsize=(11, 4.6 * len(curves)), squeeze=False, layout="constrained"
    )
    thresholds = np.arange(255, -1, -1)
    for (left, right), (name, lines) in zip(axes, curves.items(), strict=True):
        for label, line in lines.items():
            left.plot(line["recall"], line["precision"], label=label)
            right.plot(thresholds, line["f"], label=f"{label} (max {max(line['f']):.3f})")
        left.set(title=f"{name}: precision and recall", xlabel="recall", ylabel="precision")
        right.set(title=f"{name}: F (β² = 0.3)", xlabel="threshold", ylabel="F")
        for one in (left, right):
            one.set_ylim(0, 1.02)
            one.grid(alpha=0.3)
            one.legend(loc="lower left" if one is left else "lower center")
        left.set_xlim(0, 1.02)
    figure.suptitle(note, fontsize=9)
    save_figure(figure, path)


def plot_confusion(path: Path, matrices: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> None:
    """Confusion matrices K×K and their classes' names, by title, side by side: each row the share
    of its true class, in percent.
    """
    side = 2.2 + 0.55 * max(len(names) for _, names in matrices.values())
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(side * len(matrices), side), squeeze=False, layout="constrained"
    )
    for one, (title, (matrix, names)) in zip(axes[0], matrices.items(), strict=True):
        share = 100 * matrix / matrix.sum(1, keepdims=True).clip(1)
        one.imshow(share, cmap="Blues", vmin=0, vmax=100)
        for (y, x), value in np.ndenumerate(share):
            colour = "white" if value > 55 else "black"
            one.text(x, y, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
        one.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        one.set_yticks(range(len(names)), names, fontsize=8)
        one.set(title=title, xlabel="predicted", ylabel="true, % of its pixels")
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Whole or not at all, in the format that its name says; then closed."""
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names in letters that no font has: boxes
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=110)
    plt.close(figure)


def labels(paths: Sequence[Path]) -> list[str]:
    """The last part of each path that tells it from the others: a short name for tables."""
    plain = [path.absolute() for path in paths]
    names = [(path if path.is_dir() else path.with_suffix("")).parts for path in plain]
    for length in range(1, max(map(len, names), default=1) + 1):
        short = ["/".join(parts[-length:]) for parts in names]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in paths]


def few(names: Sequence[str]) -> str:
    """A list of names that leaves room for the figures; --json has them all."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
