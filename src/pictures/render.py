"""Results made of an image and its map: masks, cut-outs, overlays, other backgrounds."""

import io
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageCms

from ..errors import UserError
from . import metadata
from .backdrop import Background, backdrop, parse_background
from .classes import coloured
from .formats import IMAGE_FORMATS
from .images import Box, strips, to_8_bits, to_grey, to_rgb, to_straight
from .matting import clear_hidden, fill_hidden, foreground_strips, refine

MODES = ("mask", "binary", "cutout", "overlay", "background")
TINT = (255, 0, 64)  # of the overlay, half transparent
VISIBLE = 8  # of 255: the haze below, which nobody sees, would make crops twice as large
MARGIN = "^([0-9]{1,6}([.][0-9]{1,6})?) ?(px|%)?$"  # as JSON Schema takes it, too


@dataclass(frozen=True)
class Style:
    """How a result looks.

    Args:
        mode: ``mask``, grey, 255 where the network is sure; ``binary``, 0 and 255; ``cutout``, the
            image with the map as its alpha; ``overlay``, the image with the object tinted;
            ``background``, the object in front of another background, which is opaque.
        background: for that mode: a colour, by its RGB levels, name or ``#rrggbb``; an image; or
            ``blur``, the image's own background blurred.
        threshold: in [0, 1]; pixels are object where the map is at least this, and nothing below;
            None leaves the map soft (for ``binary``: 0.5).
        invert: keep what is not the object.
        crop: to the box around all that is visible of the object, faint parts too (8 of 255 and
            more); an image without an object stays whole.
        margin: left around that box, within the image: pixels, as ``20`` or ``"20px"``, or a share
            of the box's longer side, as ``"5%"``.
        size: shrink the result to at most this many pixels along its longer side.
        refine: put edges where the image has them, see :func:`~.matting.refine`.
        strip: leave out EXIF, GPS, XMP, comments and the resolution; the colour profile stays, as
            colours would be others without it.

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
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError("choose one from 0 to 1", "threshold", self.threshold)
        if isinstance(self.background, str):
            parse_background(self.background)
        margin_pixels(self.margin, 100)


def margin_pixels(margin: int | str, side: int) -> int:
    """A margin in pixels.

    Args:
        margin: pixels, or text: ``20``, ``20px`` or ``5%``.
        side: the longer side of the box, in pixels.

    Raises:
        UserError: the margin is neither.

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
    """The result for one image.

    What is transparent in the image stays so in ``cutout`` and ``overlay``; another background
    fills it. What lies hidden there has no influence on any result.

    Args:
        image: upright, any mode.
        saliency: H×W float32 in [0, 1], of the image's size; C×H×W of a network of classes.
        style: what to make of them.

    Returns:
        Mode L for ``mask`` and ``binary``; RGBA for ``cutout``; RGB for ``background``; for
        ``overlay`` RGB, or RGBA where the image has transparent parts. With the image's colour
        profile and metadata, if it shows colours; with its resolution in any case. Of classes,
        ``mask`` is a palette image of their indices.

    Raises:
        UserError: a mode that is of no use for classes.

    Example:
        >>> render(Image.new("RGB", (60, 40)), np.ones((40, 60), np.float32), Style("cutout")).mode
        'RGBA'
    """
    return render_with_box(image, saliency, style)[0]


def render_with_box(
    image: Image.Image, saliency: np.ndarray, style: Style, reuse: bool = False
) -> tuple[Image.Image, Box | None]:
    """As :func:`render`, and the box to which ``crop`` crops, with its margin.

    The box is None where nothing of the object is visible, and for networks of classes.

    Args:
        image, saliency, style: as for :func:`render`.
        reuse: that neither image nor map is needed any more: the map is written over, the image
            closed as soon as possible. Of large ones there are fewer copies then.
    """
    shows_colours = style.mode not in ("mask", "binary")
    box = None
    kept = {} if style.strip else metadata.carried(image, shows_colours)
    if saliency.ndim == 3:
        result = _render_classes(image, saliency, style)
    else:
        result, box = _render_object(image, saliency, style, reuse)
    del saliency
    if reuse:
        image.close()
    if style.crop and box:
        result = result.crop(box)
    profile = result.info.get("icc_profile")
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
    """The whole result, and the object's box."""
    saliency = _final_map(image, saliency, style, reuse)
    mask = to_grey(saliency)
    box = _object_box(image, mask, style)
    if style.mode in ("mask", "binary"):
        return mask, box
    return _render_colours(image, saliency, mask, style), box


def _final_map(image: Image.Image, saliency: np.ndarray, style: Style, reuse: bool) -> np.ndarray:
    if style.refine:
        saliency, reuse = refine(to_rgb(image), saliency, reuse), True
    threshold = 0.5 if style.mode == "binary" and style.threshold is None else style.threshold
    if threshold is None and not style.invert:
        return saliency
    result = saliency if reuse else np.empty_like(saliency)
    for _, top, _, bottom in strips(image.size):
        rows = saliency[top:bottom]
        rows = rows if threshold is None else (rows >= threshold).astype(np.float32)
        result[top:bottom] = 1 - rows if style.invert else rows
    return result


def _object_box(image: Image.Image, mask: Image.Image, style: Style) -> Box | None:
    """The box of what is visible of the object, with its margin, within the image."""
    alpha = _own_alpha(image)
    visible = mask if alpha is None else ImageChops.multiply(mask, alpha)
    box = visible.point([0] * VISIBLE + [255] * (256 - VISIBLE)).getbbox()
    if box is None:
        return None
    left, top, right, bottom = box
    margin = margin_pixels(style.margin, max(right - left, bottom - top))
    inside = min(image.width, right + margin), min(image.height, bottom + margin)
    return (max(0, left - margin), max(0, top - margin), *inside)


def check_classes(style: Style, classes: int, boxes: bool = False) -> None:
    """Check that a network of so many classes can give such results.

    Raises:
        UserError: the style needs an object, and none of the classes is that.
    """
    reason = f"these weights predict {classes} classes, so there is no map of the object"
    if style.mode not in ("mask", "overlay"):
        raise UserError(f"{reason}; choose mask or overlay", "mode", style.mode)
    if boxes or style.threshold is not None or style.invert or style.crop or style.refine:
        advice = "{threshold}, {invert}, {crop}, {boxes} and {refine} have no effect"
        raise UserError(reason, advice=advice)


def _render_classes(image: Image.Image, probabilities: np.ndarray, style: Style) -> Image.Image:
    check_classes(style, len(probabilities))
    result = coloured(probabilities)
    if style.mode == "overlay":
        rgb, alpha, profile = _split_alpha(image)
        result = Image.blend(rgb, result.convert("RGB"), 0.5)
        if alpha is not None:
            result.putalpha(alpha)
        result.info = {"icc_profile": profile} if profile else {}
    return result


def _shrink(result: Image.Image, style: Style) -> Image.Image:
    if not style.size or max(result.size) <= style.size:
        return result
    # There is nothing between two classes, nor between the 0 and 255 of a binary mask.
    steps = result.mode == "P" or style.mode == "binary"
    resampling = Image.Resampling.NEAREST if steps else Image.Resampling.LANCZOS
    scale = style.size / max(result.size)
    width, height = (max(1, round(n * scale)) for n in result.size)
    return result.resize((width, height), resampling)


def _render_colours(
    image: Image.Image, saliency: np.ndarray, mask: Image.Image, style: Style
) -> Image.Image:
    rgb, own_alpha, profile = _split_alpha(image)
    result = Image.new("RGB", rgb.size)
    alpha = mask if own_alpha is None else ImageChops.multiply(mask, own_alpha)
    if style.mode == "overlay":
        for box in strips(rgb.size):
            strip = rgb.crop(box)
            result.paste(strip, box)
            tinted = Image.blend(strip, Image.new("RGB", strip.size, TINT), 0.5)
            result.paste(tinted, box, mask.crop(box))
    else:
        if style.mode == "background":
            result = backdrop(style.background, rgb, mask, own_alpha)
        for box, strip in foreground_strips(rgb, saliency):
            over = alpha.crop(box) if style.mode == "background" else None
            result.paste(strip, box, over)
    shown = {"overlay": own_alpha, "background": None}.get(style.mode, alpha)
    if shown is not None:
        result.putalpha(shown)
    result.info = {"icc_profile": profile} if profile else {}
    return result


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours of an image as RGB, and its alpha, if any.

    Colours of CMYK and grey profiles are converted to sRGB; an RGB profile is kept in ``info``.
    Where the image is wholly transparent, the colours around it go on.
    """
    rgb, alpha, profile = _split_alpha(image)
    rgb = rgb.copy() if rgb is image else rgb
    rgb.info = {"icc_profile": profile} if profile else {}
    return rgb, alpha


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None, bytes | None]:
    """As :func:`split_alpha`, and the profile. The colours may be the image itself."""
    image = to_straight(to_8_bits(image))
    profile = image.info.get("icc_profile")
    alpha = _own_alpha(image)
    space = _profile_mode(profile)
    # Grey with alpha, as LA or as PNG's one transparent level, has the profile of the grey.
    inks = image.convert("L") if image.mode == "LA" else image
    rgb = None
    if profile and space == inks.mode and space in ("CMYK", "L"):
        with suppress(ImageCms.PyCMSError, OSError):  # torn: the colours as they are without it
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            rgb = ImageCms.profileToProfile(inks, source, srgb, outputMode="RGB")
    if rgb is None:
        rgb = image if alpha is None or image.mode == "RGBA" else image.convert("RGBA")
    if alpha is not None:
        if rgb.mode == "RGB":
            rgb.putalpha(alpha)
        rgb = fill_hidden(rgb)
    elif rgb.mode != "RGB":
        rgb = rgb.convert("RGB")
    return rgb, alpha, profile if space == "RGB" else None


def _own_alpha(image: Image.Image) -> Image.Image | None:
    image = to_straight(to_8_bits(image))
    if "A" in image.getbands():
        return image.getchannel("A")
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _profile_mode(profile: bytes | None) -> str | None:
    """The mode that a colour profile is for; None if it is torn or missing."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")).profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError):
        return None
    return {"GRAY": "L"}.get(space, space)


def encode(image: Image.Image, file: str | Path | BinaryIO, suffix: str) -> None:
    """Write a result.

    Args:
        image: of any mode; in a format without transparency it lies on white. What
            :func:`render` has kept of its metadata is written too, as far as the format holds it.
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
    except OSError as error:
        if error.errno:  # a full disk
            raise
        raise UserError(f"{image.width}×{image.height} cannot be written as {name}") from None
    except ValueError:
        raise UserError(f"{image.width}×{image.height} cannot be written as {name}") from None
