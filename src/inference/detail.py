"""Refines a map with crops of the image, where the first map is uncertain.

A network of 320² sees a large photo's outline in steps of ten pixels. Here it gets crops of the
photo, from the whole outline to pieces of it, each with as much context around it, so that it
still sees an object in front of a background and never mere texture. The crop's map replaces the
first one where that was uncertain and where both agree except for detail, with weights that fall
off towards the crop's border.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..pictures.images import Box, shrink, to_8_bits

if TYPE_CHECKING:
    from .predictor import Predictor

_UNSURE = (0.03, 0.97)  # levels of the map between which it is uncertain
_AGREE, _DIFFER = 0.25, 0.5  # differences of local means up to which crops count fully, or at all
_STRIP = 1 << 20  # pixels to blend at once
_LARGEST = 0.8  # of the image's sides: a larger crop shows nothing new


def look_closer(
    predictor: "Predictor", image: Image.Image, saliency: np.ndarray, count: int
) -> np.ndarray:
    """Refine a map's outlines with crops that the network sees at a larger scale.

    Args:
        predictor: of a single map; its own ``detail`` is ignored.
        image: upright, of any mode and size.
        saliency: H×W float32 in [0, 1], the first map at the image's size; overwritten.
        count: the maximum number of crops.

    Returns:
        ``saliency``.
    """
    image = to_8_bits(image)  # else each crop would be scaled by its own maximum
    seen = predictor.size.fit(image.height, image.width)
    step = max(image.height / seen[0], image.width / seen[1])  # image pixels per map pixel
    unsure = _find_unsure(saliency, seen)
    for boxes in plan(unsure, image.size, seen, count):
        for box in boxes:
            part = predictor.prepare(image.crop(box))
            found = predictor.maps(part[None])[0].cpu()
            _blend(saliency, found, box, step)
        left, top, right, bottom = boxes[0]
        step = max((right - left) / found.shape[1], (bottom - top) / found.shape[0])
    return saliency


def _find_unsure(saliency: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of the map at this size that are uncertain or on an outline: H×W bool."""
    levels = torch.from_numpy(shrink(saliency, size[::-1]))[None, None]
    highest = F.max_pool2d(levels, 3, 1, 1)[0, 0]
    lowest = -F.max_pool2d(-levels, 3, 1, 1)[0, 0]
    between = (levels[0, 0] > 0.1) & (levels[0, 0] < 0.9)
    return (between | ((lowest < 0.5) & (highest >= 0.5))).numpy()


def plan(
    unsure: np.ndarray, image: tuple[int, int], seen: tuple[int, int], count: int
) -> Iterator[list[Box]]:
    """The crops of an image to predict, level by level, each level at twice the scale.

    Args:
        unsure: h×w bool, of the whole image.
        image: its width and height in pixels.
        seen: height and width at which the network sees a crop; none is smaller.
        count: the maximum number of all crops together.

    Yields:
        Boxes that together hold every uncertain pixel in their middle half.
    """
    rows, columns = np.nonzero(unsure)
    if not rows.size:
        return
    points = np.stack((columns + 0.5, rows + 0.5)) * np.divide(image, unsure.shape[::-1])[:, None]
    side = max(float(np.ptp(points, axis=1).max()), 1.0)
    pieces = 1
    while count > 0 and 2 * side / pieces >= min(seen):
        boxes = _cover(points, pieces, image)
        if len(boxes) > count:  # a step half as large may still fit
            boxes, pieces = _cover(points, 0.75 * pieces, image), pieces * 2
            if len(boxes) > count or pieces < 8:
                return
        shares = ((right - left, bottom - top) for left, top, right, bottom in boxes)
        if all(max(np.divide(share, image)) <= _LARGEST for share in shares):
            count -= len(boxes)
            yield boxes
        pieces *= 2


def _cover(points: np.ndarray, pieces: float, image: tuple[int, int]) -> list[Box]:
    """The cells of a grid that hold any of the points (2×N), each in the middle of a crop.

    The whole and its halves get half of their size as context around them. A smaller piece, which
    tells a network less, gets its own size on each side.
    """
    first = points.min(1)
    cell = max(float(np.ptp(points, axis=1).max()), 1.0) / pieces
    cells = {(y, x) for x, y in ((points.T - first) / cell * 0.9999).astype(int).tolist()}
    middles = ((first + cell * (np.array((x, y)) + 0.5)).tolist() for y, x in sorted(cells))
    return [_fit(x, y, (3 if pieces > 2 else 2) * cell, image) for x, y in middles]


def _fit(x: float, y: float, side: float, image: tuple[int, int]) -> Box:
    """A square around a point, moved into the image, or clipped where it is larger."""
    spans = []
    for centre, size in zip((x, y), image, strict=True):
        length = min(size, round(side))
        begin = min(max(0, round(centre - length / 2)), size - length)
        spans.append((begin, begin + length))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def _blend(saliency: np.ndarray, found: Tensor, box: Box, step: float) -> None:
    """Blend a crop's map into the whole one, in place.

    Args:
        saliency: of the image.
        found: h×w, of the crop.
        box: the crop.
        step: image pixels per pixel of the maps so far.
    """
    left, top, right, bottom = box
    part = saliency[top:bottom, left:right]
    height, width = found.shape
    base = torch.from_numpy(shrink(part, (width, height)))
    radius = max(1, round(step * width / (right - left)))  # an earlier pixel, in this crop's
    weight = _weigh(base, found, radius) * _feather(box, saliency.shape, (height, width))
    layers = [Image.fromarray(layer.numpy()) for layer in (found, weight)]
    rows = max(1, _STRIP // (right - left))
    for begin in range(0, bottom - top, rows):
        end = min(bottom - top, begin + rows)
        at = (0.0, begin * height / (bottom - top), float(width), end * height / (bottom - top))
        size = (right - left, end - begin)
        new, share = (
            np.asarray(layer.resize(size, Image.Resampling.BILINEAR, at)) for layer in layers
        )
        part[begin:end] += (new - part[begin:end]) * share
    np.clip(part, 0, 1, out=part)


def _weigh(base: Tensor, found: Tensor, radius: int) -> Tensor:
    """The weight of a crop's map: where the first map is uncertain, if both agree in the mean."""
    unsure = ((base > _UNSURE[0]) & (base < _UNSURE[1])).float()
    near = _mean(F.max_pool2d(unsure[None, None], 2 * radius + 1, 1, radius)[0, 0], radius)
    apart = (_mean(base, 2 * radius) - _mean(found, 2 * radius)).abs()
    return near * ((_DIFFER - apart) / (_DIFFER - _AGREE)).clamp(0, 1)


def _mean(values: Tensor, radius: int) -> Tensor:
    """The mean over square windows; at the border, over their part inside."""
    width = 2 * radius + 1
    return F.avg_pool2d(values[None, None], width, 1, radius, count_include_pad=False)[0, 0]


def _feather(box: Box, image: tuple[int, ...], size: tuple[int, int]) -> Tensor:
    """1 in the middle half, falling off to 0 at the border, except at the image's own border."""
    ramps = []
    for begin, end, whole, n in zip(box[1::-1], box[:1:-1], image, size, strict=True):
        place = (torch.arange(n) + 0.5) / n
        rise, fall = (4 * place).clamp(max=1), (4 * (1 - place)).clamp(max=1)
        rise = rise if begin else torch.ones(n)
        ramps.append(rise * (fall if end < whole else torch.ones(n)))
    down, across = (ramp * ramp * (3 - 2 * ramp) for ramp in ramps)
    return down[:, None] * across
