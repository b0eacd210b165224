"""The layers of a result: an image's colours and alpha, the object, and the background behind it: a
colour, another image, or the image's own background blurred.
"""

import io
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import cast

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageColor, ImageFilter

from ..errors import UserError
from .images import LARGE, STRIP, Box, shrink_image, strips, to_8_bits, to_rgb, to_straight
from .matting import fill_hidden, foreground_strips

SMALL = 8_000_000  # pixels, at most, to which large images are reduced for blurring
Background = tuple[int, int, int] | str | Image.Image


def parse_background(text: str) -> tuple[int, int, int] | str:
    """Convert a colour, by name or as ``#rrggbb``, to its RGB levels; ``blur`` is returned as it
    is.

    Raises:
        UserError: it is neither.

    Example:
        >>> parse_background("#20a040")
        (32, 160, 64)
    """
    if text == "blur":
        return text
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError:
        problem = "neither a colour (white, #00ff00) nor blur"
        raise UserError(problem, "background", text) from None
    if alpha and alpha[0] < 255:
        raise UserError("a background is opaque; leave the alpha out", "background", text)
    return red, green, blue


def check_background(background: object) -> Background:
    """Check a background for :func:`backdrop`; levels may be any sequence of three integers.

    Raises:
        UserError: it is not a background.
    """
    if isinstance(background, str):
        parse_background(background)
        return background
    if isinstance(background, Image.Image):
        return background
    levels = tuple(background) if isinstance(background, Sequence | np.ndarray) else ()
    if len(levels) != 3 or not all(
        isinstance(n, int | np.integer) and 0 <= n <= 255 for n in levels
    ):
        problem = "expected a colour (a name, #rrggbb, or three levels up to 255), blur or an image"
        raise UserError(problem, "background", background)
    red, green, blue = map(int, levels)
    return red, green, blue


def to_layers(
    image: Image.Image, reuse: bool = False
) -> tuple[Image.Image, Image.Image | None, bytes | None]:
    """An image's colours, its alpha if it has any, and the ICC profile of its colours, if any.

    Colours of CMYK and grey profiles are converted to sRGB. Where the image is fully transparent,
    the surrounding colours continue. The colours may be the image itself, or RGBA with full alpha.

    Args:
        image: in any mode.
        reuse: overwrite or close the image, to save memory.
    """
    straight = to_straight(to_8_bits(image))
    if reuse and straight is not image:
        image.close()
    reuse = reuse or straight is not image
    profile = straight.info.get("icc_profile")
    space = _profile_mode(profile)
    # Grey with alpha, as LA or as PNG's one transparent level, has the profile of the grey.
    inks = straight.convert("L") if straight.mode == "LA" else straight
    rgb = alpha = None
    if profile and space == inks.mode and space in ("CMYK", "L"):
        with suppress(ImageCms.PyCMSError, OSError):  # corrupt: the colours as they are without it
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            rgb = ImageCms.profileToProfile(inks, source, srgb, outputMode="RGB")
    if straight.has_transparency_data:
        mixed = straight if straight.mode == "RGBA" else straight.convert("RGBA")
        alpha = mixed.getchannel("A")
        if rgb:
            rgb.putalpha(alpha)
    else:
        mixed = straight if straight.mode == "RGB" else rgb or straight.convert("RGB")
    rgb = rgb or mixed
    del inks, mixed
    if reuse and rgb is not straight:
        straight.close()
    if alpha is not None:
        rgb = fill_hidden(rgb, reuse=reuse or rgb is not straight)
    return rgb, alpha, profile if space == "RGB" else None


def own_alpha(image: Image.Image) -> Image.Image | None:
    """The alpha of an image of any mode, if it has one."""
    image = to_straight(to_8_bits(image))
    if "A" in image.getbands():
        return image.getchannel("A")
    return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None


def _profile_mode(profile: bytes | None) -> str | None:
    """The mode that a colour profile is for; None if it is corrupt or missing."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")).profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError):
        return None
    return {"GRAY": "L"}.get(space, space)


def tint(
    rgb: Image.Image, mask: Image.Image, colour: tuple[int, int, int], result: Image.Image
) -> None:
    """Tint the object half with a colour; ``result`` may be ``rgb``."""
    for box in strips(rgb.size):
        strip = rgb.crop(box).convert("RGB")
        tinted = Image.blend(strip, Image.new("RGB", strip.size, colour), 0.5)
        strip.paste(tinted, mask=mask.crop(box))
        result.paste(strip, box)


def lay(
    rgb: Image.Image,
    saliency: np.ndarray,
    shown: Image.Image,
    behind: Callable[[Box], Image.Image] | None,
    result: Image.Image,
) -> None:
    """Draw the object in its own colours, composited with its alpha ``shown`` over another
    background if there is one; ``result`` may be ``rgb``.
    """
    for box, strip in foreground_strips(rgb, saliency):
        if behind:
            ground = behind(box)
            ground.paste(strip, mask=shown.crop(box))
            strip = ground
        result.paste(strip, box)


def backdrop(
    background: Background,
    rgb: Image.Image,
    mask: Image.Image,
    alpha: Image.Image | None,
    profile: bytes | None = None,
) -> Callable[[Box], Image.Image]:
    """The background behind the object, from the object's mask, the image's alpha and the RGB
    profile that its colours keep.

    Returns:
        A function that returns its part, RGB, in a box of whole rows of the image.
    """
    if isinstance(background, str):
        background = parse_background(background)
    if isinstance(background, tuple):
        dot = _in_space(Image.new("RGB", (1, 1), background), None, profile)
        colour = cast(tuple[int, int, int], dot.getpixel((0, 0)))
        return lambda box: Image.new("RGB", (box[2] - box[0], box[3] - box[1]), colour)
    if isinstance(background, Image.Image):
        layer, method = _in_space(*_on_white(background), profile), Image.Resampling.LANCZOS
        left, top, width, height = _middle(layer.size, rgb.size)
    else:
        layer, method = _blurred(rgb, mask, alpha), Image.Resampling.BICUBIC
        left, top, width, height = 0, 0, *layer.size
    right, bottom = left + width, top + height
    if rgb.width * rgb.height <= LARGE:
        return layer.resize(rgb.size, method, (left, top, right, bottom)).crop
    step = height / rgb.height

    def behind(box: Box) -> Image.Image:
        end = bottom if box[3] == rgb.height else top + box[3] * step
        rows = box[3] - box[1]
        return layer.resize((rgb.width, rows), method, (left, top + box[1] * step, right, end))

    return behind


def _on_white(image: Image.Image) -> tuple[Image.Image, bytes | None]:
    """An image as RGB, on white where it is transparent, and the profile of its colours; None for
    sRGB, which colours of other spaces are converted to.
    """
    if not image.info.get("icc_profile"):
        return to_rgb(image), None
    rgb, alpha, profile = to_layers(image)
    if alpha is not None:
        rgb = rgb.convert("RGB")
        rgb.putalpha(alpha)
    return to_rgb(rgb), profile


def _in_space(image: Image.Image, own: bytes | None, wanted: bytes | None) -> Image.Image:
    """Convert RGB colours from one profile to another; None is sRGB."""
    if own == wanted:
        return image
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    with suppress(ImageCms.PyCMSError, OSError):  # corrupt: the colours as they are without it
        source, target = (
            ImageCms.ImageCmsProfile(io.BytesIO(data)) if data else srgb for data in (own, wanted)
        )
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
        return converted or image
    return image


def _middle(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, width and height of the largest centred part with the aspect ratio of
    ``target``."""
    (width, height), ratio = size, target[0] / target[1]
    inside = (ratio * height, height) if ratio < width / height else (width, width / ratio)
    wide, high = size if ratio == width / height else inside
    return (width - wide) / 2, (height - high) / 2, wide, high


def _blurred(rgb: Image.Image, mask: Image.Image, alpha: Image.Image | None) -> Image.Image:
    weighted = _own_background(rgb, mask, alpha)
    blur = ImageFilter.GaussianBlur(max(2, max(weighted.size) / 40))
    blurred = weighted.filter(blur).convert("RGBA")
    # Where little background is near, 8 bits are too few for its colour: nearby colours continue.
    near = blurred.getchannel("A").point([0] * 32 + [255] * 224)
    if near.getbbox() is None:
        return shrink_image(rgb, near.size).filter(blur)
    blurred.putalpha(near)
    return fill_hidden(blurred)


def _own_background(rgb: Image.Image, mask: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Colours weighted by how much they are background: the object must not bleed into the blur.

    Premultiplied (RGBa); images of more than ``LARGE`` pixels are reduced.
    """
    pixels = rgb.width * rgb.height
    factor = math.ceil(math.sqrt(pixels / SMALL)) if pixels > LARGE else 1
    result = Image.new("RGBa", [-(-n // factor) for n in rgb.size])
    rows = max(1, STRIP // (rgb.width * factor))
    for left, top, right, bottom in strips(result.size, rows * result.width):
        box = left, top * factor, rgb.width, min(rgb.height, bottom * factor)
        strip, shown = rgb.crop(box), ImageChops.invert(mask.crop(box))
        strip.putalpha(shown if alpha is None else ImageChops.multiply(shown, alpha.crop(box)))
        strip = strip.convert("RGBa")
        result.paste(strip.reduce(factor) if factor > 1 else strip, (left, top, right, bottom))
    return result
