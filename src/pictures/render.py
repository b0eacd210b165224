"""Renders results from an image and its map: masks, cut-outs, overlays, other backgrounds."""

import re
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops

from ..errors import UserError
from . import metadata
from .classes import coloured
from .formats import IMAGE_FORMATS
from .images import Box, strips, take, tidy, to_grey, to_rgb, upright
from .layers import Background, backdrop, check_background, lay, own_alpha, tint, to_layers
from .matting import clear_hidden, refine

MODES = ("mask", "binary", "cutout", "overlay", "background")
TINT = (255, 0, 64)  # of the overlay, half transparent
VISIBLE = 8  # of 255: fainter haze, which nobody sees, would make crops twice as large
MARGIN = "^([0-9]{1,6}([.][0-9]{1,6})?) ?(px|%)?$"  # also valid in JSON Schema


@dataclass(frozen=True)
class Style:
    """How a result looks.

    Args:
        mode: ``mask``, grey, 255 where the network is sure; ``binary``, 0 and 255; ``cutout``, the
            image with the map as its alpha; ``overlay``, the image with the object tinted;
            ``background``, the object in front of another background, which is opaque.
        background: for that mode: a colour, by its RGB levels, name or ``#rrggbb``; an image; or
            ``blur``, the image's own background blurred.
        threshold: in [0, 1]; pixels belong to the object where the map is at least this; None
            leaves the map soft (for ``binary``: 0.5).
        invert: keep the background instead of the object.
        crop: crop to the box around all visible parts of the object, faint ones too (8 of 255 and
            more); an image without an object is not cropped.
        margin: added around that box, within the image: pixels, as ``20`` or ``"20px"``, or a share
            of the box's longer side, as ``"5%"``.
        size: shrink the result to at most this many pixels along its longer side.
        refine: move edges to where the image has them, see :func:`~.matting.refine`.
        strip: leave out EXIF, GPS, XMP, comments and the resolution; the colour profile stays, as
            colours would change without it.

    Raises:
        UserError: an unknown mode, colour or margin, or a threshold outside [0, 1].

    Example:
        >>> Style("background", "#20a040").threshold is None
        True
    """

    mode: str = "mask"
    background: Background = (255, 255, 255)
    threshold: float | None = None
    invert: bool = False
    crop: bool = False
    size: int | None = None
    refine: bool = False
    margin: int | str = 0
    strip: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"choose one of {', '.join(MODES)}", "mode", self.mode)
        for name in ("invert", "crop", "refine", "strip"):
            if not isinstance(getattr(self, name), bool):
                raise UserError("expected True or False", name, getattr(self, name))
        whole = isinstance(self.size, Integral) and not isinstance(self.size, bool)
        if self.size is not None and (not whole or self.size < 1):
            raise UserError("choose pixels, at least 1", "size", self.size)
        object.__setattr__(self, "background", check_background(self.background))
        if not isinstance(self.threshold, Real | None) or isinstance(self.threshold, bool):
            raise UserError("expected a number from 0 to 1", "threshold", self.threshold)
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError("choose one from 0 to 1", "threshold", self.threshold)
        margin_pixels(self.margin, 100)


def margin_pixels(margin: int | str, side: int) -> int:
    """A margin in pixels.

    Args:
        margin: pixels, or text: ``20``, ``20px`` or ``5%``.
        side: the longer side of the box, in pixels.

    Raises:
        UserError: the margin is neither of these.

    Example:
        >>> margin_pixels("5%", 400)
        20
    """
    number = re.fullmatch(MARGIN, str(margin).strip())
    if not number:
        reason = "choose pixels, as 20, or a share of the object's longer side, as 5%"
        raise UserError(reason, "margin", margin)
    return round(float(number[1]) * (side / 100 if number[3] == "%" else 1))


def render(image: Image.Image, saliency: np.ndarray, style: Style) -> Image.Image:
    """Render the result for one image.

    Transparent parts of the image stay transparent in ``cutout`` and ``overlay``; another
    background fills them. The colours hidden there do not influence any result.

    Args:
        image: any mode; the result is upright, as its EXIF orientation says.
        saliency: H×W float32 in [0, 1], of the upright image's size; C×H×W for several classes.
        style: the kind of result.

    Returns:
        Mode L for ``mask`` and ``binary``; RGBA for ``cutout``; RGB for ``background``; for
        ``overlay`` RGB, or RGBA if the image has transparent parts. With the image's resolution
        and, if it shows the image's colours, its colour profile and metadata. For classes, ``mask``
        is a palette image of their indices.

    Raises:
        UserError: the mode is not available for classes, or the map has another size or type.

    Example:
        >>> render(Image.new("RGB", (60, 40)), np.ones((40, 60), np.float32), Style("cutout")).mode
        'RGBA'
    """
    for given, kind, name in ((image, Image.Image, "image"), (style, Style, "style")):
        if not isinstance(given, kind):
            raise UserError(f"expected a {kind.__name__}, got {type(given).__name__}", name)
    image = upright(image)
    _check_map(image, saliency)
    plain = np.require(saliency, np.float32, ("C", "W"))  # torch does not take flipped views
    return render_with_box(image, plain, style)[0]


def _check_map(image: Image.Image, saliency: np.ndarray) -> None:
    if not (isinstance(saliency, np.ndarray) and np.issubdtype(saliency.dtype, np.floating)):
        kind = getattr(saliency, "dtype", type(saliency).__name__)
        raise UserError(f"expected a NumPy array of floats from 0 to 1, got {kind}", "saliency")
    fits = saliency.ndim in (2, 3) and saliency.shape[-2:] == (image.height, image.width)
    if not fits or not len(saliency):
        shape = "×".join(map(str, saliency.shape))
        problem = f"expected {image.height}×{image.width}, as the image, got {shape}"
        raise UserError(problem, "saliency")
    if saliency.size and not (saliency.min() >= 0 and saliency.max() <= 1):  # false for NaN
        raise UserError("expected values from 0 to 1", "saliency")


def render_with_box(
    image: Image.Image, saliency: np.ndarray, style: Style, reuse: bool = False
) -> tuple[Image.Image, Box | None]:
    """As :func:`render`, also with the box that ``crop`` crops to, with its margin.

    The box is None if no part of the object is visible, and for several classes.

    Args:
        image, saliency, style: as for :func:`render`.
        reuse: image and map are no longer needed: the map is overwritten, the image closed as soon
            as possible. That saves copies of large ones.
    """
    shows_colours = style.mode not in ("mask", "binary")
    kept = {} if style.strip else metadata.carried(image, shows_colours)
    image = take(image) if reuse else image
    step = _render_classes if saliency.ndim == 3 else _render_object
    maps = [saliency]  # without a name here, it is freed as early as possible
    del saliency
    result, box = step(image, maps.pop(), style, reuse)
    if reuse and result is not image:
        image.close()
    tidy(result)
    profile = result.info.get("icc_profile")
    if style.crop and box:
        result = result.crop(box)
    if style.mode == "background" and result.mode != "RGB":  # its alpha is 255 everywhere
        result = result.convert("RGB")
    result = _shrink(result, style)
    if result.mode == "RGBA":
        result = clear_hidden(result)
    result.info = kept
    if profile:
        result.info["icc_profile"] = profile
    return result, box


def _render_object(
    image: Image.Image, saliency: np.ndarray, style: Style, reuse: bool
) -> tuple[Image.Image, Box | None]:
    """The uncropped result, and the object's box."""
    saliency = _final_map(image, saliency, style, reuse)
    if style.mode in ("mask", "binary"):
        mask = to_grey(saliency)
        return mask, _object_box(_multiply(mask, own_alpha(image)), style)
    rgb, alpha, profile = to_layers(image, reuse)
    tidy(rgb)
    result = _canvas(rgb, image, reuse, profile)
    mask = to_grey(saliency)
    shown = _multiply(mask, alpha)
    behind = None
    if style.mode == "overlay":
        tint(rgb, mask, TINT, result)
    else:
        if style.mode == "background":
            behind = backdrop(style.background, rgb, mask, alpha, profile)
        lay(rgb, saliency, shown, behind, result)
    opacity = {"overlay": alpha, "cutout": shown}.get(style.mode)
    if opacity is not None:
        result.putalpha(opacity)
    return result, _object_box(shown, style)


def _canvas(
    rgb: Image.Image, image: Image.Image, reuse: bool, profile: bytes | None
) -> Image.Image:
    """The image to draw the result on: the colours themselves, unless they are the caller's."""
    result = rgb if reuse or rgb is not image else Image.new("RGB", rgb.size)
    result.info = {"icc_profile": profile} if profile else {}
    return result


def _final_map(image: Image.Image, saliency: np.ndarray, style: Style, reuse: bool) -> np.ndarray:
    if style.refine:
        saliency, reuse = refine(image, saliency, reuse), True
        tidy(image)
    threshold = 0.5 if style.mode == "binary" and style.threshold is None else style.threshold
    if threshold is None and not style.invert:
        return saliency
    result = saliency if reuse else np.empty_like(saliency)
    for _, top, _, bottom in strips(image.size):
        rows = saliency[top:bottom]
        rows = rows if threshold is None else (rows >= threshold).astype(np.float32)
        result[top:bottom] = 1 - rows if style.invert else rows
    return result


def _multiply(mask: Image.Image, alpha: Image.Image | None) -> Image.Image:
    return mask if alpha is None else ImageChops.multiply(mask, alpha)


def _object_box(visible: Image.Image, style: Style) -> Box | None:
    """The box of the object's visible parts, with its margin, within the image."""
    box = visible.point([0] * VISIBLE + [255] * (256 - VISIBLE)).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    margin = margin_pixels(style.margin, max(right - left, bottom - top))
    inside = min(visible.width, right + margin), min(visible.height, bottom + margin)
    return (max(0, left - margin), max(0, top - margin), *inside)


def check_classes(style: Style, classes: int, boxes: bool = False) -> None:
    """Check that a network with this many classes can give such results.

    Raises:
        UserError: the style needs a map of an object.
    """
    reason = f"these weights predict {classes} classes, so there is no map of the object"
    if style.mode not in ("mask", "overlay"):
        raise UserError(f"{reason}; choose mask or overlay", "mode", style.mode)
    if boxes or style.threshold is not None or style.invert or style.crop or style.refine:
        advice = "{threshold}, {invert}, {crop}, {boxes} and {refine} have no effect"
        raise UserError(reason, advice=advice)


def _render_classes(
    image: Image.Image, probabilities: np.ndarray, style: Style, reuse: bool
) -> tuple[Image.Image, None]:
    check_classes(style, len(probabilities))
    classes = coloured(probabilities)
    del probabilities
    if style.mode != "overlay":
        return classes, None
    rgb, alpha, profile = to_layers(image, reuse)
    result = _canvas(rgb, image, reuse, profile)
    for box in strips(rgb.size):
        colours = classes.crop(box).convert("RGB")
        result.paste(Image.blend(rgb.crop(box).convert("RGB"), colours, 0.5), box)
    if alpha is not None:
        result.putalpha(alpha)
    return result, None


def _shrink(result: Image.Image, style: Style) -> Image.Image:
    if not style.size or max(result.size) <= style.size:
        return result
    # Nothing lies between two classes, nor between the 0 and 255 of a binary mask.
    steps = result.mode == "P" or style.mode == "binary"
    resampling = Image.Resampling.NEAREST if steps else Image.Resampling.LANCZOS
    scale = style.size / max(result.size)
    width, height = (max(1, round(n * scale)) for n in result.size)
    return result.resize((width, height), resampling)


def encode(image: Image.Image, file: str | Path | BinaryIO, suffix: str) -> None:
    """Write a result.

    Args:
        image: of any mode; in a format without transparency it is composited on white. The metadata
            that :func:`render` kept are written too, as far as the format holds them.
        file: a path or an open file.
        suffix: chooses the format, one of :data:`~.formats.IMAGE_FORMATS`.

    Raises:
        UserError: the format cannot hold an image of this size.
    """
    name, options = IMAGE_FORMATS[suffix]
    info = image.info
    if image.mode == "P" and name not in ("PNG", "TIFF"):  # the others have no palettes
        image = image.convert("RGB")
    if name == "JPEG" and image.mode == "RGBA":
        image = to_rgb(image)
    image.info = info
    try:
        metadata.save(image, file, name, **options)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: AVIF's
        if getattr(error, "errno", None):  # a full disk
            raise
        raise UserError(f"{image.width}×{image.height} cannot be written as {name}") from None
