"""What is seen behind an object: a colour, another image, or its own background blurred."""

import math

from PIL import Image, ImageChops, ImageColor, ImageFilter, ImageOps

from ..errors import UserError
from .images import STRIP, strips, to_rgb
from .matting import fill_hidden

LARGE = 32_000_000  # pixels; the background of a larger image is blurred at a fraction of its size
Background = tuple[int, int, int] | str | Image.Image


def parse_background(text: str) -> tuple[int, int, int] | str:
    """A colour by name or as ``#rrggbb`` to its RGB levels; ``blur`` stays as it is.

    Raises:
        UserError: it is neither.

    Example:
        >>> parse_background("#20a040")
        (32, 160, 64)
    """
    if text == "blur":
        return text
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UserError(
            "neither a colour (white, #00ff00), nor blur, nor an image", "background", text
        ) from None
    return red, green, blue


def backdrop(
    background: Background, rgb: Image.Image, mask: Image.Image, alpha: Image.Image | None
) -> Image.Image:
    """What is seen behind the object, of the image's size, by the object's mask and the image's
    alpha.
    """
    if isinstance(background, Image.Image):
        return ImageOps.fit(to_rgb(background), rgb.size, Image.Resampling.LANCZOS)
    if isinstance(background, str):
        background = parse_background(background)
    if not isinstance(background, str):
        return Image.new("RGB", rgb.size, background)
    weighted = _own_background(rgb, mask, alpha)
    blur = ImageFilter.GaussianBlur(max(2, max(weighted.size) / 40))
    blurred = weighted.filter(blur).convert("RGBA")
    # Where little of it is near, 8 bits are too few for its colour: that of what is near goes on.
    near = blurred.getchannel("A").point([0] * 32 + [255] * 224)
    if near.getbbox() is None:
        blurred = rgb.resize(near.size, Image.Resampling.BOX).filter(blur)
    else:
        blurred.putalpha(near)
        blurred = fill_hidden(blurred)
    return blurred.resize(rgb.size, Image.Resampling.BICUBIC)


def _own_background(rgb: Image.Image, mask: Image.Image, alpha: Image.Image | None) -> Image.Image:
    """Colours weighted by how much they are background: the object must not shine out of the blur.

    Premultiplied (RGBa), and of an image of more than ``LARGE`` pixels a fraction of its size.
    """
    factor = math.ceil(math.sqrt(rgb.width * rgb.height / LARGE))
    result = Image.new("RGBa", [-(-n // factor) for n in rgb.size])
    rows = max(1, STRIP // (rgb.width * factor))
    for left, top, right, bottom in strips(result.size, rows * result.width):
        box = left, top * factor, rgb.width, min(rgb.height, bottom * factor)
        strip, shown = rgb.crop(box), ImageChops.invert(mask.crop(box))
        strip.putalpha(shown if alpha is None else ImageChops.multiply(shown, alpha.crop(box)))
        strip = strip.convert("RGBa")
        result.paste(strip.reduce(factor) if factor > 1 else strip, (left, top, right, bottom))
    return result
