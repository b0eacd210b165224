"""Weighted F, relaxed boundary F and boundary accuracy: measures that depend on where the errors of
a map are, one map at a time.

They need distances between pixels, which OpenCV computes on the CPU; it releases the GIL, so
threads can score while the network computes.
"""

import cv2
import numpy as np

from .effort import correction_efforts
from .saliency import BETA2

_AWAY = np.arange(-3, 4)
_DISC = (_AWAY**2 + _AWAY[:, None] ** 2 <= 9).astype(np.uint8)  # how far an outline may be off
_GAUSSIAN = cv2.getGaussianKernel(7, 5.0, cv2.CV_32F)
_FARTHEST = 18  # squared distance of the corners of that filter
_REACH = 4  # of the neighbours no farther than that
_SIDE = range(-_REACH, _REACH + 1)
# Of equally near ones, scipy and so PySODMetrics takes the leftmost, then topmost: it comes last.
_NEIGHBOURS = {
    square: [(y, x) for x in reversed(_SIDE) for y in reversed(_SIDE) if y * y + x * x == square]
    for square in sorted({y * y + x * x for y in _SIDE for x in _SIDE})
    if 0 < square <= _FARTHEST
}


def structural(levels: np.ndarray, mask: np.ndarray, stretch: bool) -> tuple[float, ...]:
    """The measures of :data:`~.saliency.STRUCTURAL` of one map, in that order.

    Args:
        levels: H×W uint8.
        mask: H×W uint8 {0, 1}.
        stretch: stretch the map by its own minimum and maximum; a constant one stays as it is.
    """
    values = np.arange(256, dtype=np.float32) / 255
    low, high = int(levels.min()), int(levels.max())
    if stretch and high > low:
        values = (values - values[low]) / (values[high] - values[low])
    saliency = cv2.LUT(levels, values)
    of_outline = relaxed_boundary_f(saliency, mask), boundary_accuracy(saliency, mask)
    return weighted_f(saliency, mask), *of_outline, correction_efforts(saliency, mask)


def weighted_f(saliency: np.ndarray, mask: np.ndarray) -> float:
    """The weighted F-measure (Margolin et al. 2014, β² = 1) of one map; 0 for an empty mask.

    Args:
        saliency: H×W float32 in [0, 1].
        mask: H×W uint8 {0, 1}.
    """
    objects = np.count_nonzero(mask)
    if not objects:
        return 0.0
    # Where both are 0, there is no error: crop to the rest and its reach.
    left, top, width, height = cv2.boundingRect(((saliency > 0) | (mask > 0)).view(np.uint8))
    y, x = max(0, top - _REACH), max(0, left - _REACH)
    part = np.s_[y : top + height + _REACH, x : left + width + _REACH]
    saliency, mask = saliency[part], np.ascontiguousarray(mask[part])
    inside = mask.astype(np.float32)
    error = cv2.absdiff(saliency, inside)
    distance = cv2.distanceTransform(1 - mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    spread = _from_nearest(error, mask, distance)
    # An error next to right neighbours counts less: what a viewer sees is their mean.
    blurred = cv2.sepFilter2D(spread, -1, _GAUSSIAN, _GAUSSIAN, borderType=cv2.BORDER_CONSTANT)
    missed = float(np.vdot(np.minimum(error, blurred), inside))
    # A false alarm counts up to double, the further it is from the object.
    weight = 2 - np.exp(distance * np.float32(np.log(0.5) / 5))
    alarms = float(np.vdot(error * (1 - inside), weight))
    hits = objects - missed
    recall = 1 - missed / objects
    precision = hits / (hits + alarms) if hits + alarms else 0.0
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def _from_nearest(error: np.ndarray, mask: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The error, but background pixels within reach get that of the nearest object pixel."""
    errors, inside, away = (
        cv2.copyMakeBorder(x, _REACH, _REACH, _REACH, _REACH, cv2.BORDER_CONSTANT, value=0)
        for x in (error, mask, distance)
    )
    padded, shape = errors.shape[1], errors.shape
    errors, inside = errors.ravel(), inside.ravel()
    band = np.flatnonzero(cv2.inRange(away, 0.5, _FARTHEST**0.5 + 0.01))
    squared = np.rint(away.ravel()[band] ** 2)
    for square, neighbours in _NEIGHBOURS.items():
        pixels = band[squared == square]
        for dy, dx in neighbours:  # the preferred one comes last, and stays
            there = pixels + (dy * padded + dx)
            found = inside[there] > 0
            errors[pixels[found]] = errors[there[found]]  # from objects, which don't change
    return errors.reshape(shape)[_REACH:-_REACH, _REACH:-_REACH]


def relaxed_boundary_f(saliency: np.ndarray, mask: np.ndarray) -> float:
    """F (β² = 0.3) of a map's outline at 0.5, where a pixel may be up to 3 off, in any direction.

    As Qin et al. 2020 (section 4.3) describe it: the outline is what a 3×3 erosion removes from the
    binary map, at the image's border too; per image, then averaged. On ECSSD, the published lite
    weights get .806 this way, .808 in the paper; eroding by a cross gives .803, not at the border
    .804, a square in place of the disc .820. 0 if either outline is empty.

    Args:
        saliency: H×W float32 in [0, 1].
        mask: H×W uint8 {0, 1}.
    """
    outline, truth = (_outline(x) for x in ((saliency >= 0.5).astype(np.uint8), mask))
    pixels, true_pixels = np.count_nonzero(outline), np.count_nonzero(truth)
    if not pixels or not true_pixels:
        return 0.0
    precision = np.count_nonzero(outline & cv2.dilate(truth, _DISC)) / pixels
    recall = np.count_nonzero(truth & cv2.dilate(outline, _DISC)) / true_pixels
    weighted = BETA2 * precision + recall
    return (1 + BETA2) * precision * recall / weighted if weighted else 0.0


def _outline(binary: np.ndarray) -> np.ndarray:
    square = np.ones((3, 3), np.uint8)
    return binary ^ cv2.erode(binary, square, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def boundary_accuracy(saliency: np.ndarray, mask: np.ndarray) -> float:
    """The mean boundary accuracy (mBA) of one map, as Cheng et al. 2020 (CascadePSP) define it.

    Of the pixels within a distance of the mask's outline, the share that are right at 0.5, averaged
    over five distances: from 1 pixel up, in equal steps below 1/300 of width and height together.
    The image's border is not part of the outline. 0 if the mask has none, being empty or full.

    Args:
        saliency: H×W float32 in [0, 1].
        mask: H×W uint8 {0, 1}.
    """
    right = (saliency >= 0.5) == mask.astype(bool)
    widest = sum(mask.shape) / 300
    shares: dict[int, float] = {}  # small images have fewer distances
    radii = [1 + int((widest - 1) / 5 * step) for step in range(5)]
    for radius in set(radii):
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
        near = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, disc) > 0
        shares[radius] = float(right[near].mean()) if near.any() else 0.0
    return sum(shares[radius] for radius in radii) / len(radii)
