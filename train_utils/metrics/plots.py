"""Figures of scores: curves, confusion matrices, sheets of the worst images.

matplotlib is imported when a figure is drawn: it takes a second, and its search for fonts more.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from src.files import atomic_path, printable
from src.pictures.classes import COLOURS
from src.pictures.images import open_image, to_rgb

from .report import all_conditions, conditions, title
from .score import ScoreResult, rescore_samples

# Fonts of common systems, for names of files and classes in Chinese, Japanese or Korean.
_EAST_ASIAN = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Micro Hei"),
    *("WenQuanYi Zen Hei", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "SimHei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
)


@lru_cache
def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files, with fonts for East Asian scripts if available."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import get_font_names

    available = set(get_font_names())
    east_asian = [name for name in _EAST_ASIAN if name in available]
    plt.rcParams["font.family"] = ["DejaVu Sans", *east_asian]
    return plt


def plot_curves(path: Path, results: Sequence[ScoreResult]) -> None:
    """Draw precision over recall, and F over the threshold: a row per data set, a line per source.

    Args:
        path: of the figure, in any format that matplotlib writes.
        results: of saliency.
    """
    names = list(dict.fromkeys(result.job.set_name for result in results))
    thresholds = np.arange(255, -1, -1)
    with _figure(path, len(names), 2, (11, 4.6 * len(names))) as (figure, axes):
        for result in results:
            label, curves = _text(result.job.source.label), result.evaluation.curves
            label = f" {label}" if label[:1] == "_" else label  # legends leave out names with _
            left, right = axes[names.index(result.job.set_name)]
            left.plot(curves["recall"], curves["precision"], label=label)
            right.plot(thresholds, curves["f"], label=f"{label} (max {max(curves['f']):.3f})")
        for (left, right), name in zip(axes, map(_text, names), strict=True):
            left.set(title=f"{name}: precision and recall", xlabel="recall", ylabel="precision")
            right.set(title=f"{name}: F (β² = 0.3)", xlabel="threshold", ylabel="F")
            left.set_xlim(0, 1.02)
            for one, place in ((left, "lower left"), (right, "lower center")):
                one.set_ylim(0, 1.02)
                one.grid(alpha=0.3)
                one.legend(loc=place)
        figure.suptitle(_text(all_conditions(results)), fontsize=9)


def plot_confusion(path: Path, results: Sequence[ScoreResult]) -> None:
    """Draw confusion matrices side by side; each row is the share of its true class, in percent.

    Args:
        path: of the figure.
        results: of classes.
    """
    side = 2.2 + 0.55 * max(len(result.job.class_names) for result in results)
    with _figure(path, 1, len(results), (side * len(results), side)) as (_, axes):
        for one, result in zip(axes[0], results, strict=True):
            names = list(map(_text, result.job.class_names))
            confusion = result.evaluation.confusion
            assert confusion is not None
            matrix = confusion.numpy()
            share = 100 * matrix / matrix.sum(1, keepdims=True).clip(1)
            one.imshow(share, cmap="Blues", vmin=0, vmax=100)
            for (y, x), value in np.ndenumerate(share):
                colour = "white" if value > 55 else "black"
                one.text(x, y, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8)
            one.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
            one.set_yticks(range(len(names)), names, fontsize=8)
            one.set(title=_text(title(result)), xlabel="predicted", ylabel="true, % of its pixels")


class Panels(NamedTuple):
    """The panels of an image: H×W in [0, 1], or colours H×W×3 in [0, 1] or uint8."""

    image: np.ndarray
    mask: np.ndarray
    map: np.ndarray
    error: np.ndarray


def plot_worst(path: Path, result: ScoreResult, count: int) -> None:
    """Draw the images with the highest MAE, or the lowest mean IoU, one per row.

    Args:
        path: of the figure.
        result: the one whose images to draw.
        count: how many.
    """
    job, options, scores = result.job, result.job.options, result.evaluation.rows
    semantic = bool(options.classes)
    first, second = ("mean_iou", "pixel_accuracy") if semantic else ("mae", "max_f")
    worst = sorted(scores, key=lambda index: scores[index][first], reverse=not semantic)[:count]
    rows, present = [], set()
    for index, found, mask in rescore_samples(job, worst):
        pair = job.data.pairs[index]
        image = np.asarray(to_rgb(open_image(pair.image)))
        if semantic:
            panels = class_panels(image, mask, found, options.ignore_index)
            present |= {*np.unique(found).tolist(), *np.unique(mask).tolist()}
        else:
            panels = saliency_panels(image, mask, found, options.stretch)
        values = ", ".join(f"{name} {scores[index][name]:.3f}" for name in (first, second))
        rows.append((f"{pair.name}: {values}", panels))
    order = "lowest mean IoU" if semantic else "highest MAE"
    heading = f"{title(result)}: the {len(rows)} of {order} ({conditions(result)})"
    error = "wrong red, ignored grey" if semantic else "missed red, added blue"
    classes = {name: i for i, name in enumerate(job.class_names) if i in present}
    draw_sheet(path, rows, heading, error, classes)


def saliency_panels(
    image: np.ndarray, mask: np.ndarray, levels: np.ndarray, stretch: bool
) -> Panels:
    """Make the panels of a saliency map. What it misses is red, what it adds is blue.

    Args:
        image: H×W×3 uint8.
        mask: H×W {0, 1}.
        levels: the map, H×W uint8.
        stretch: stretch it to its full range.
    """
    saliency = levels / 255
    if stretch and np.ptp(saliency):
        saliency = (saliency - saliency.min()) / np.ptp(saliency)
    missed, added = (mask - saliency).clip(0, 1), (saliency - mask).clip(0, 1)
    error = 1 - np.stack((added, np.maximum(missed, added), missed), axis=-1)
    return Panels(image, mask, saliency, error)


def class_panels(
    image: np.ndarray, mask: np.ndarray, classes: np.ndarray, ignore_index: int | None
) -> Panels:
    """Make the panels of a class map. Wrong pixels are red, ignored ones grey (white in the mask).

    Args:
        image: H×W×3 uint8.
        mask: class indices, H×W uint8.
        classes: the map, H×W uint8.
        ignore_index: the mask's value for pixels to ignore.
    """
    true, error = COLOURS[mask], np.full((*mask.shape, 3), 255, np.uint8)
    error[classes != mask] = 220, 30, 30
    if ignore_index is not None:
        true[mask == ignore_index] = 255
        error[mask == ignore_index] = 160
    return Panels(image, true, COLOURS[classes], error)


def draw_sheet(
    path: Path,
    rows: Sequence[tuple[str, Panels]],
    heading: str,
    error: str,
    classes: Mapping[str, int],
) -> None:
    """Draw some images, one per row.

    Args:
        path: of the sheet.
        rows: caption and panels of each.
        heading: above all rows.
        error: what the colours of the last panel mean.
        classes: index by name, of those in the legend of colours; none for saliency.
    """
    heads = "mask", "map", f"error: {error}"
    # Inches of each row, by its image's aspect, with the caption.
    shapes = [panels.image.shape for _, panels in rows]
    heights = [2.95 * min(1.5, shape[0] / shape[1]) + 0.3 for shape in shapes]
    size = 12, sum(heights) + 0.6
    with _figure(path, len(rows), 4, size, heights) as (figure, axes):
        for row, (caption, panels) in zip(axes, rows, strict=True):
            for one, content in zip(row, panels, strict=True):
                one.imshow(content, cmap="gray", vmin=0, vmax=1)
                one.axis("off")
            row[0].set_title(_text(caption), fontsize=8, loc="left")
        for one, head in zip(axes[0, 1:], heads, strict=True):
            one.set_title(head, fontsize=8)
        figure.suptitle(_text(heading), fontsize=10)
        if classes:
            from matplotlib.patches import Patch

            patches = [
                Patch(color=COLOURS[i] / 255, label=_text(name)) for name, i in classes.items()
            ]
            columns = min(8, len(patches))
            figure.legend(handles=patches, loc="outside lower center", ncols=columns, fontsize=8)


def _text(text: str) -> str:
    """Text for matplotlib: escapes names that are not UTF-8, and dollars, which begin formulas."""
    return printable(text).replace("$", r"\$")


@contextmanager
def _figure(
    path: Path,
    rows: int,
    columns: int,
    size: tuple[float, float],
    heights: Sequence[float] | None = None,
) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, rows × columns; after the block it is written atomically, in the
    format of its name's suffix.
    """
    plt = pyplot()
    figure, axes = plt.subplots(
        rows, columns, figsize=size, squeeze=False, layout="constrained", height_ratios=heights
    )
    try:
        yield figure, axes
        with atomic_path(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # letters in no font become boxes
            figure.savefig(temporary, format=path.suffix[1:], dpi=110)
    finally:
        plt.close(figure)
