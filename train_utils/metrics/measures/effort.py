"""Human correction efforts: how many clicks correct a map to its mask (Qin et al. 2022).

As in "Highly accurate dichotomous image segmentation", section 4: wrong regions thinner than the
relaxation do not count, unless a thin part of the object is missing; each of the others costs the
corners of the polygon that would correct it, or one click if it is isolated.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from skimage.morphology import skeletonize

RELAX = 5  # pixels: errors along an outline that are no wider cost nothing
EPSILON = 2.0  # pixels that a polygon may be off the outline
_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


def correction_efforts(saliency: np.ndarray, mask: np.ndarray) -> float:
    """The human correction efforts (HCE) of one map; 0 if there is nothing to correct.

    Args:
        saliency: H×W float32 in [0, 1]; object above 0.5.
        mask: H×W uint8 {0, 1}.
    """
    truth, found = mask.astype(bool), saliency > 0.5
    if np.array_equal(truth, found):
        return 0.0
    right, extra, missed = truth & found, found & ~truth, truth & ~found
    # Crop to where either is 1. The rim is for what the border would cut off.
    left, top, width, height = cv2.boundingRect((truth | found).view(np.uint8))
    rows = slice(max(0, top - 2), top + height + 2)
    part = (rows, slice(max(0, left - 2), left + width + 2))
    truth, found, right, extra, missed = (x[part] for x in (truth, found, right, extra, missed))
    inner = _morph(cv2.erode, truth | found, RELAX)
    extra_wide = extra & _grow(extra & inner, ~truth)
    missed_wide = missed & _grow(missed & inner, ~found)
    if missed.any():  # thin parts of the object count at any width
        missed_wide |= skeletonize(truth) & ~right
    known = right | extra_wide | missed_wide
    return float(
        _count(extra_wide, beside=right | missed_wide) + _count(missed_wide, beside=~known)
    )


def _morph(operation: Callable[..., Any], binary: np.ndarray, times: int = 1) -> np.ndarray:
    return operation(binary.view(np.uint8), _CROSS, iterations=times).astype(bool)


def _grow(seeds: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Seeds grown by the relaxation, step by step, never outside ``within``."""
    for _ in range(RELAX):
        seeds = _morph(cv2.dilate, seeds) & within
    return seeds


def _count(regions: np.ndarray, beside: np.ndarray) -> int:
    """Clicks to correct some regions: corners of polygons where they touch ``beside``, and one for
    each region that does not touch it."""
    if not regions.any():
        return 0
    beside = _morph(cv2.dilate, beside)
    contours, _ = cv2.findContours(regions.view(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    _, labels = cv2.connectedComponents(regions.view(np.uint8), connectivity=8)
    alone = np.ones(labels.max() + 1, bool)
    alone[0] = False
    visited = np.zeros(regions.shape, bool)
    corners = 0
    for contour in contours:
        x, y = contour[:, 0].T
        place = y * regions.shape[1] + x
        first = np.zeros(len(place), bool)
        first[np.unique(place, return_index=True)[1]] = True  # contours pass thin regions twice
        wanted = first & beside[y, x] & ~visited[y, x]
        visited[y[wanted], x[wanted]] = True
        alone[labels[y[wanted], x[wanted]]] = False
        corners += sum(
            len(cv2.approxPolyDP(line, EPSILON, False)) for line in _lines(contour, wanted)
        )
    return corners + int(alone.sum())


def _lines(contour: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
    """The pieces of a closed contour whose points are wanted; the last may run into the first."""
    ends = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False]))))
    lines = [contour[begin:end] for begin, end in zip(ends[::2], ends[1::2], strict=True)]
    if len(lines) > 1 and np.abs(lines[0][0, 0] - lines[-1][-1, 0]).max() == 1:
        lines[-1] = np.concatenate((lines[-1], lines[0][::-1]))  # in the official order
        del lines[0]
    return lines
