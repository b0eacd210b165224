"""From a coarse map to a cut-out: edges at the image's resolution, colours without background.

Everything works in strips of rows, so that memory stays bounded for images of any size.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor

from .images import Box, shrink, shrink_image, strips, to_8_bits, to_rgb

_SIDE = 1024  # edges are refined in an image of at most this side first
_COLOUR_SIDE = 512  # the object's colours far from the edge are estimated at this side
_RADII = (6, 2, 1)  # of the later windows, at full size, in pixels
_STRIP = 1 << 19  # pixels that are processed at once at full size
_VISIBLE = 0.5 / 255  # the lowest alpha that is not 0 in 8 bits
_ANY = [0] + [255] * 255  # alpha: 255 where it is not 0
_NONE = [255] + [0] * 255  # and where it is
_REACH = 2  # pixels by which colours continue into transparent parts
_FREEDOM = (0.06, 1.2)  # of colours to move alpha away from a map that is certain, or uncertain
_PRIOR = 0.003  # weight of the map against colours: that of two colours that differ by its root


def refine(image: Image.Image, alpha: np.ndarray, reuse: bool = False) -> np.ndarray:
    """Move a map's edges to those of the image, at the image's own resolution.

    Around the map's outline, a pixel's alpha is its position between the colours of certain object
    and certain background nearby: the least squares solution of the compositing equation. The map
    is its prior, which weighs more the more certain it is, the more similar these colours are, and
    the more they vary. The result is the map for a second pass.
    ``docs/using/predict.md`` compares it with a guided filter and closed-form matting.

    Args:
        image: of any size and mode; transparent parts count as white.
        alpha: H×W float32 in [0, 1], of the image's size.
        reuse: write the result over ``alpha``.

    Returns:
        H×W float32 in [0, 1].
    """
    image = to_8_bits(image)  # else each strip would be scaled by its own maximum
    small, coarse = _shrink(image, alpha, _SIDE)
    radius = max(2, round(max(small.size) / 140))  # a network's map of 320² is uncertain that far
    band = _unsure_band(coarse, radius)
    if not band.any():
        return alpha
    near, behind, doubt = _local_colours(small, coarse, band, radius)
    layers = [_image(near), _image(behind), Image.fromarray(band.byte().numpy() * 255)]
    doubts = Image.fromarray(doubt[0].float().numpy())
    result = alpha if reuse else alpha.copy()
    for rows, _ in _strips(*image.size, margin=0):
        box = (0, rows.start, image.width, rows.stop)
        first, second, mask = (_stretch(layer, image.size, box) for layer in layers)
        unsure = np.asarray(mask) > 127
        if unsure.any():
            place = _place(
                _tensor(to_rgb(image.crop(box))),
                _tensor(first),
                _tensor(second),
                prior=torch.from_numpy(alpha[rows])[None],
                doubt=torch.from_numpy(np.array(_stretch(doubts, image.size, box))),
            )
            result[rows][unsure] = place[0].numpy()[unsure]
    return result


def _local_colours(
    small: Image.Image, coarse: np.ndarray, band: Tensor, radius: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Colours of object and background around each pixel, 3×H×W, and how unreliable they are."""
    pixels, prior = _tensor(small).double(), torch.from_numpy(coarse)[None].double()
    # Next to an outline the map is certain: what looks like the object there is a blade of grass.
    freedom = (10 * prior * (1 - prior)).square().clamp(*_FREEDOM)
    level = prior
    for _ in range(2):
        near, near_weight, near_variance = _window_mean(pixels, _certainty(level), radius)
        behind, behind_weight, behind_variance = _window_mean(pixels, _certainty(1 - level), radius)
        # Where colours vary by as much as the two differ, as in front of leaves, they say nothing.
        # And eyes and shadows inside an object, far from any background, are not holes in it.
        doubt = _PRIOR + near_variance + behind_variance
        doubt /= (near_weight / 0.01).clamp(0.3, 1) * (behind_weight / 0.05).clamp(1e-3, 1)
        doubt /= freedom
        level = torch.where(band, _place(pixels, near, behind, prior, doubt), prior)
    return near, behind, doubt


def _unsure_band(alpha: np.ndarray, radius: int) -> Tensor:
    """Where the map is uncertain, and the surroundings: H×W bool."""
    levels, width = torch.from_numpy(alpha)[None], 2 * radius + 1
    highest = F.max_pool2d(levels, width, stride=1, padding=radius)
    lowest = -F.max_pool2d(-levels, width, stride=1, padding=radius)
    return ((highest > 0.04) & (lowest < 0.96))[0]


def _certainty(level: Tensor) -> Tensor:
    """The weight of a pixel's colour: from 0.7 on, with a trace below for where there is no
    better."""
    return ((level - 0.7) / 0.3).clamp(0, 1) + 1e-4 * level


def _window_mean(pixels: Tensor, weight: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted mean over windows, the sum of the weights, and the variance of all channels
    together.
    """
    amount = _box(weight, radius)
    total = amount + 1e-9
    mean = _box(pixels * weight, radius) / total
    square = _box(pixels.square().sum(0, keepdim=True) * weight, radius) / total
    return mean, amount, (square - mean.square().sum(0, keepdim=True)).clamp_(min=0)


def _place(pixels: Tensor, near: Tensor, behind: Tensor, prior: Tensor, doubt: Tensor) -> Tensor:
    """1×H×W: the mixture of both colours that comes closest to the pixel's, and to the prior."""
    way = near - behind
    along = (way * (pixels - behind)).sum(0, keepdim=True) + doubt * prior
    return (along / (way.square().sum(0, keepdim=True) + doubt)).clamp_(0, 1)


def foreground(image: Image.Image, alpha: np.ndarray) -> Image.Image:
    """Estimate the object's own colours where the image mixes them with the background's.

    After blur-fusion (Forte 2021, "Approximate fast foreground colour estimation"): the means of
    object and background around a pixel, each weighted by its share, then corrected so that both
    together give the pixel. Here both are corrected, by least squares, and windows shrink in five
    steps; ``docs/using/predict.md`` compares it with other ways.

    Args:
        image: RGB, of any size.
        alpha: H×W in [0, 1], of the image's size.

    Returns:
        RGB; where alpha is 1 or 0, the image's pixels unchanged.
    """
    result = Image.new("RGB", image.size)
    for box, strip in foreground_strips(image, alpha):
        result.paste(strip, box)
    return result


def foreground_strips(image: Image.Image, alpha: np.ndarray) -> Iterator[tuple[Box, Image.Image]]:
    """As :func:`foreground`, in strips of rows, each with its box.

    A strip is yielded when its rows of the image, which may also be RGBA with full alpha, are no
    longer needed, so that it can overwrite them.
    """
    small, coarse = _shrink(image, alpha, _COLOUR_SIDE)
    pixels, weight = _tensor(small).double(), torch.from_numpy(coarse)[None].double()
    colours = _fuse(pixels, pixels, pixels, weight, [max(small.size) // n for n in (11, 32)])
    near, behind = map(_image, colours)
    margin = 2 * sum(_RADII)
    done: deque[tuple[Box, Image.Image]] = deque()
    for rows, outer in _strips(*image.size, margin):
        while done and done[0][0][3] <= outer.start:
            yield done.popleft()
        mixed = _mixed(alpha[rows])
        seen = np.flatnonzero(mixed.any(0))
        whole = (0, rows.start, image.width, rows.stop)
        if not seen.size:
            done.append((whole, image.crop(whole).convert("RGB")))
            continue
        left, right = max(0, seen[0] - margin), min(image.width, int(seen[-1]) + 1 + margin)
        box = (int(left), outer.start, right, outer.stop)
        fused, _ = _fuse(
            _tensor(image.crop(box).convert("RGB")),
            _tensor(_stretch(near, image.size, box)),
            _tensor(_stretch(behind, image.size, box)),
            torch.from_numpy(alpha[outer, left:right].astype(np.float32))[None],
            _RADII,
        )
        inner = slice(rows.start - outer.start, rows.stop - outer.start)
        strip = np.array(image.crop(whole).convert("RGB"))
        part = mixed[:, left:right]
        strip[:, left:right][part] = np.asarray(_image(fused))[inner][part]
        done.append((whole, Image.fromarray(strip)))
    yield from done


def _mixed(alpha: np.ndarray) -> np.ndarray:
    """A mask of the pixels that show both object and background."""
    return (alpha >= _VISIBLE) & (alpha < 1)


def fill_hidden(image: Image.Image, reuse: bool = False) -> Image.Image:
    """The colours of an image, continued smoothly where it is fully transparent.

    The colours hidden there have no influence, not even on windows that reach into them.

    Args:
        image: RGBA.
        reuse: overwrite ``image``, whose alpha becomes 255.

    Returns:
        RGB, or with ``reuse`` the image; black if nothing is visible.
    """
    colours = image if reuse else image.convert("RGB")
    if not image.getchannel("A").getextrema()[0]:
        half = _halve(image)
        # One axis after the other, as Pillow resizes; at once, there would be two full copies.
        wide = half.resize((image.width, half.height), Image.Resampling.BILINEAR)
        for top, left, bottom, right in strips(image.size[::-1]):
            columns = wide.crop((left, 0, right, half.height))
            around = columns.resize((right - left, image.height), Image.Resampling.BILINEAR)
            box = left, top, right, bottom
            hidden = image.crop(box).getchannel("A").point(_NONE)
            colours.paste(around, box, hidden)
    if reuse:
        image.putalpha(255)
    return colours


def _halve(image: Image.Image) -> Image.Image:
    """RGBA to RGB of half the size, with colours continued where nothing is visible."""
    if max(image.size) == 1:
        return Image.new("RGB", image.size)
    # Colours are weighted by alpha only here: for a second time, 8 bits would be too few.
    width, height = ((n + 1) // 2 for n in image.size)
    half = shrink_image(image, (width, height), "RGBa").convert("RGBA")
    half.putalpha(half.getchannel("A").point(_ANY))
    return fill_hidden(half, reuse=True).convert("RGB")


def clear_hidden(image: Image.Image) -> Image.Image:
    """Clear the colours of a cut-out's transparent pixels.

    Programs that ignore alpha would show what was removed. Next to visible pixels their colours
    continue, so that no dark line appears where programs resize colours and alpha separately;
    further away it is black.

    Args:
        image: RGBA.

    Returns:
        RGBA.
    """
    if image.getchannel("A").getextrema()[0]:
        return image
    result = image.copy()
    for rows, outer in _strips(*image.size, _REACH):
        part = np.array(image.crop((0, outer.start, image.width, outer.stop)), np.float32)
        part[..., :3] *= part[..., 3:]
        visible = Image.fromarray((part[..., 3] > 0).astype(np.uint8) * 255)
        near = np.asarray(visible.filter(ImageFilter.BoxBlur(_REACH))) > 0
        hidden = part[..., 3] == 0
        y, x = np.nonzero(hidden & near)
        sums = np.zeros((len(y), 4), np.float32)
        for down in range(-_REACH, _REACH + 1):
            for right in range(-_REACH, _REACH + 1):
                sums += part[
                    (y + down).clip(0, len(part) - 1), (x + right).clip(0, image.width - 1)
                ]
        part[hidden] = 0
        part[y, x, :3] = (sums[:, :3] / sums[:, 3:].clip(min=1e-3)).round()
        inner = slice(rows.start - outer.start, rows.stop - outer.start)
        # Only hidden pixels are pasted, so that visible ones stay as they are.
        mask = Image.fromarray(hidden[inner])
        cleared = Image.fromarray(part[inner].clip(0, 255).astype(np.uint8))
        result.paste(cleared, (0, rows.start), mask)
    return result


def _fuse(
    pixels: Tensor, near: Tensor, behind: Tensor, alpha: Tensor, radii: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Colours of object and background, 3×H×W each, over windows of 2·radius + 1, one after
    another."""
    share = alpha.square() + (1 - alpha).square() + 0.1  # 0.1: weight of the means
    for radius in radii:
        amount = _box(alpha, radius)
        near = _box(near * alpha, radius) / (amount + 1e-5)
        behind = _box(behind * (1 - alpha), radius) / (1 - amount + 1e-5)
        rest = (pixels - alpha * near - (1 - alpha) * behind) / share
        near = (near + alpha * rest).clamp_(0, 1)
        behind = (behind + (1 - alpha) * rest).clamp_(0, 1)
    return near, behind


def _shrink(image: Image.Image, alpha: np.ndarray, side: int) -> tuple[Image.Image, np.ndarray]:
    """Both, shrunk to at most ``side`` pixels along the longer side."""
    scale = min(1, side / max(image.size))
    width, height = (max(1, round(n * scale)) for n in image.size)
    coarse = shrink(alpha.astype(np.float32, copy=False), (width, height))
    return shrink_image(image, (width, height)), coarse


def _stretch(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]
) -> Image.Image:
    """The part ``box`` of the image resized to ``size``."""
    across, down = image.width / size[0], image.height / size[1]
    part = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    target = (box[2] - box[0], box[3] - box[1])
    return image.resize(target, Image.Resampling.BILINEAR, box=part)


def _strips(width: int, height: int, margin: int) -> Iterator[tuple[slice, slice]]:
    """Rows to write, and those to read for them."""
    step = max(1, _STRIP // width)
    for top in range(0, height, step):
        bottom = min(height, top + step)
        yield slice(top, bottom), slice(max(0, top - margin), min(height, bottom + margin))


def _box(x: Tensor, radius: int) -> Tensor:
    """C×H×W to the means over square windows; at the border, over their part inside.

    With running sums, which need float64 where windows are wide.
    """
    for dim in (-1, -2):
        size = x.shape[dim]
        place = torch.arange(size)
        first, last = (place - radius).clamp_(min=0), (place + radius + 1).clamp_(max=size)
        sums = F.pad(x.cumsum(dim), (1, 0) if dim == -1 else (0, 0, 1, 0))
        count = (last - first).view(-1, *[1] * (-1 - dim))
        x = sums.index_select(dim, last).sub_(sums.index_select(dim, first)).div_(count)
    return x


def _tensor(image: Image.Image) -> Tensor:
    """RGB to 3×H×W float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)


def _image(colours: Tensor) -> Image.Image:
    """3×H×W in [0, 1] to RGB."""
    levels = (colours * 255).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())
