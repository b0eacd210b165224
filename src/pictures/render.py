"""What is made of a picture and its map: masks, cut-outs, overlays, other backgrounds."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageColor, ImageFilter, ImageOps

from ..errors import UserError
from .classes import coloured
from .images import to_8_bits, to_grey, to_rgb
from .matting import foreground, refine

MODES = ("mask", "binary", "cutout", "overlay", "background")
TINT = (255, 0, 64)  # of the overlay, half transparent
Background = tuple[int, int, int] | str | Image.Image

# By suffix: Pillow's name, and what keeps a result as it was made.
FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    ".png": ("PNG", {"compress_level": 4}),  # 0.4 of the default's time, for 5 % more bytes
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True, "exact": True, "method": 2, "quality": 50}),
    ".tif": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".tiff": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ".avif": ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
}


@dataclass(frozen=True)
class Style:
    """How a result looks.

    Args:
        mode: ``mask``, grey, 255 where the network is sure; ``binary``, 0 and 255; ``cutout``, the
            picture with the map as its alpha; ``overlay``, the picture with the object tinted;
            ``background``, the object before another background.
        background: of that mode: a colour, ``blur`` for the picture's own, or a picture.
        threshold: the map is object from here on and nothing below; None leaves it soft (for
            ``binary``: 0.5).
        invert: keep what is not the object.
        crop: to the box around the object; a picture without one stays whole.
        size: shrink the result to this many pixels at most along its longer side.
        refine: put edges where the picture has them, see :func:`~.matting.refine`.
    """

    mode: str = "mask"
    background: Background = (255, 255, 255)
    threshold: float | None = None
    invert: bool = False
    crop: bool = False
    size: int | None = None
    refine: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"--mode {self.mode}: choose one of {', '.join(MODES)}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold {self.threshold}: choose one from 0 to 1")


def parse_background(text: str) -> Background:
    """``blur``, or a colour by name or as ``#rrggbb``.

    Raises:
        UserError: it is neither.
    """
    if text == "blur":
        return text
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise UserError(
            f"--background {text}: neither a colour (white, #00ff00), nor blur, nor a picture"
        ) from None


def render(picture: Image.Image, saliency: np.ndarray, style: Style) -> Image.Image:
    """The result for one picture. What is transparent in the picture stays so.

    Args:
        picture: upright, any mode.
        saliency: H×W float32 in [0, 1], of the picture's size; C×H×W of a network of classes.
        style: what to make of them.

    Returns:
        Mode L for ``mask`` and ``binary``; RGBA for ``cutout``; RGB for the others, or RGBA where
        the picture has transparent parts. With the picture's colour profile, if it shows colours.
        Of classes, ``mask`` is a palette picture of their indices.

    Raises:
        UserError: a mode that classes have no use for.
    """
    if saliency.ndim == 3:
        return _classes(picture, saliency, style)
    if style.refine:
        saliency = refine(to_rgb(picture), saliency)
    threshold = 0.5 if style.mode == "binary" and style.threshold is None else style.threshold
    if threshold is not None:
        saliency = (saliency >= threshold).astype(np.float32)
    if style.invert:
        saliency = 1 - saliency
    result = to_grey(saliency)
    if style.mode not in ("mask", "binary"):
        result = _coloured(picture, saliency, result, style)
    if style.crop:
        result = _cropped(result, saliency)
    return _shrunk(result, style)


def check_classes(style: Style, classes: int) -> None:
    """Whether a network of so many classes can give such results.

    Raises:
        UserError: the style needs an object, and none of the classes is that.
    """
    none = f"these weights tell {classes} classes, none of which is the object"
    if style.mode not in ("mask", "overlay"):
        raise UserError(f"--mode {style.mode}: {none}; choose mask or overlay")
    if style.threshold is not None or style.invert or style.crop or style.refine:
        raise UserError(f"{none}, so --threshold, --invert, --crop and --refine have no use")


def _classes(picture: Image.Image, probabilities: np.ndarray, style: Style) -> Image.Image:
    check_classes(style, len(probabilities))
    result = coloured(probabilities)
    if style.mode == "overlay":
        rgb, alpha = colours(picture)
        result = Image.blend(rgb, result.convert("RGB"), 0.5)
        if alpha is not None:
            result.putalpha(alpha)
        result.info = dict(rgb.info)
    return _shrunk(result, style)


def _shrunk(result: Image.Image, style: Style) -> Image.Image:
    if not style.size or max(result.size) <= style.size:
        return result
    # Classes have nothing between them, nor have 0 and 255 in a binary mask.
    steps = result.mode == "P" or style.mode == "binary"
    how = Image.Resampling.NEAREST if steps else Image.Resampling.LANCZOS
    scale = style.size / max(result.size)
    return result.resize([max(1, round(n * scale)) for n in result.size], how)


def _coloured(
    picture: Image.Image, saliency: np.ndarray, mask: Image.Image, style: Style
) -> Image.Image:
    rgb, own_alpha = colours(picture)
    profile = rgb.info.get("icc_profile")
    if style.mode == "overlay":
        result = Image.composite(Image.blend(rgb, Image.new("RGB", rgb.size, TINT), 0.5), rgb, mask)
        alpha = own_alpha
    else:
        hard = ((saliency == 0) | (saliency == 1)).all()
        result = rgb.copy() if hard else foreground(rgb, saliency)
        alpha = mask if own_alpha is None else ImageChops.multiply(mask, own_alpha)
        if style.mode == "background":
            result = Image.composite(result, _ground(style.background, rgb, mask), alpha)
            alpha = None
    if alpha is not None:
        result.putalpha(alpha)
    result.info = {"icc_profile": profile} if profile else {}
    return result


def _ground(background: Background, rgb: Image.Image, mask: Image.Image) -> Image.Image:
    """What is seen behind the object, of the picture's size."""
    if isinstance(background, Image.Image):
        return ImageOps.fit(to_rgb(background), rgb.size, Image.Resampling.LANCZOS)
    if background != "blur":
        return Image.new("RGB", rgb.size, background)
    # Colours weighted by how much they are background: the object must not shine out of the blur.
    weighted = rgb.copy()
    weighted.putalpha(ImageChops.invert(mask).point([max(1, n) for n in range(256)]))
    radius = max(2, max(rgb.size) / 40)
    blurred = weighted.convert("RGBa").filter(ImageFilter.GaussianBlur(radius))
    return blurred.convert("RGBA").convert("RGB")


def _cropped(result: Image.Image, saliency: np.ndarray) -> Image.Image:
    there = saliency >= 0.5
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    if not rows.size:
        return result
    return result.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))


def colours(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The picture's colours as RGB (its profile, if it fits, in ``info``), and its alpha, if any.

    Colours of CMYK and grey profiles are converted to sRGB.
    """
    picture = to_8_bits(picture)
    profile = picture.info.get("icc_profile")
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    space = _space(profile)
    # Grey with alpha, as LA or as PNG's one transparent level, has the grey's profile.
    inks = picture.convert("L") if picture.mode == "LA" else picture
    if space == inks.mode and space in ("CMYK", "L"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(inks, source, srgb, outputMode="RGB"), alpha
        except (ImageCms.PyCMSError, OSError):
            profile = None  # torn: the colours as they would be without
    rgb = picture.convert("RGBA").convert("RGB") if alpha else picture.convert("RGB")
    rgb.info = {"icc_profile": profile} if space == "RGB" else {}
    return rgb, alpha


def _space(profile: bytes | None) -> str | None:
    """The mode that a colour profile is for; None if it is torn."""
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile or b"")).profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError):
        return None
    return {"GRAY": "L"}.get(found, found)


def encode(image: Image.Image, file: str | Path | BinaryIO, suffix: str) -> None:
    """Write a result in the format of ``suffix``; where that has no transparency, it lies on white.

    Raises:
        UserError: the format cannot hold a picture of this size.
    """
    name, options = FORMATS[suffix]
    if image.mode == "P" and name not in ("PNG", "TIFF"):  # these have no palettes
        image = image.convert("RGB")
    if name == "JPEG" and image.mode == "RGBA":
        info, image = image.info, to_rgb(image)
        image.info = info
    try:
        image.save(file, name, icc_profile=image.info.get("icc_profile"), **options)
    except OSError as error:
        if error.errno:  # a full disk
            raise
        raise UserError(f"{image.width}×{image.height} cannot be written as {name}") from None
    except ValueError:
        raise UserError(f"{image.width}×{image.height} cannot be written as {name}") from None
