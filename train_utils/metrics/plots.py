"""Sheets of the worst pictures: what was there, what was found, and where they differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

from src.pictures.classes import COLOURS

from .report import save_figure


class Panels(NamedTuple):
    """A picture's row: H×W in [0, 1], or colours H×W×3 in [0, 1] or uint8."""

    picture: np.ndarray
    mask: np.ndarray
    found: np.ndarray
    error: np.ndarray


def saliency_panels(
    picture: np.ndarray, mask: np.ndarray, levels: np.ndarray, stretch: bool
) -> Panels:
    """Of a mask H×W {0, 1} and a map H×W uint8, stretched to its full range if so wanted. What the
    map misses is red, what it adds is blue.
    """
    saliency = levels / 255
    if stretch and np.ptp(saliency):
        saliency = (saliency - saliency.min()) / np.ptp(saliency)
    missed, added = (mask - saliency).clip(0, 1), (saliency - mask).clip(0, 1)
    error = 1 - np.stack((added, np.maximum(missed, added), missed), axis=-1)
    return Panels(picture, mask, saliency, error)


def class_panels(
    picture: np.ndarray, mask: np.ndarray, found: np.ndarray, ignore_index: int | None
) -> Panels:
    """Of class indices H×W uint8, in their colours; white in the mask what is to be ignored. Wrong
    pixels are red, ignored ones grey.
    """
    true, error = COLOURS[mask], np.full((*mask.shape, 3), 255, np.uint8)
    error[found != mask] = 220, 30, 30
    if ignore_index is not None:
        true[mask == ignore_index] = 255
        error[mask == ignore_index] = 160
    return Panels(picture, true, COLOURS[found], error)


def worst_sheet(
    path: Path,
    rows: Sequence[tuple[str, Panels]],
    title: str,
    error: str,
    classes: Mapping[str, int],
) -> None:
    """Some pictures, a row each.

    Args:
        path: of the sheet.
        rows: caption and panels of each.
        title: above all.
        error: what the colours of the last panel say.
        classes: index by name, of those whose colours are explained below; none for saliency.
    """
    heads = "picture", "mask", "map", f"error: {error}"
    figure, axes = plt.subplots(
        len(rows), 4, figsize=(12, 2.6 * len(rows) + 0.6), squeeze=False, layout="constrained"
    )
    for row, (caption, panels) in zip(axes, rows, strict=True):
        for one, image in zip(row, panels, strict=True):
            one.imshow(image, cmap="gray", vmin=0, vmax=1)
            one.axis("off")
        row[0].set_title(caption, fontsize=8, loc="left")
    for one, head in zip(axes[0, 1:], heads[1:], strict=True):
        one.set_title(head, fontsize=8)
    figure.suptitle(title, fontsize=10)
    if classes:
        patches = [Patch(color=COLOURS[i] / 255, label=name) for name, i in classes.items()]
        figure.legend(
            handles=patches, loc="outside lower center", ncols=min(8, len(patches)), fontsize=8
        )
    save_figure(figure, path)
