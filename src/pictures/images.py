"""Images from disk, upright and RGB."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..device import return_freed_memory
from ..errors import UserError
from .formats import DECODERS, IMAGE_SUFFIXES
from .metadata import raw_exif, raw_xmp, upright_exif, upright_xmp

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the upright image; right and bottom are outside."""

STRIP = 1 << 22
"""Pixels of a large image that are processed at once."""

LARGE = 32_000_000
"""Pixels of an image above which memory matters more than time."""

_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_MANY = ("AVIF", "DCX", "FLI", "GIF", "PNG", "TIFF", "WEBP")
"""Formats whose files may hold several images. Excluded are a phone's JPEG (MPO) and HEIC, which
hold other views of one scene, the layers of a PSD and the sizes of an icon."""

MAX_PIXELS = 200_000_000
"""The limit of an image in the scripts. Elsewhere that of Pillow or :func:`limit_pixels` holds."""

_advice = "shrink it"  # for an image that is too large


def list_images(folder: Path) -> list[Path]:
    """The images of a folder, sorted; without hidden files (macOS writes ._NAME.jpg)."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if path.name[0] != "." and path.is_file())


def limit_pixels(count: int, advice: str = "shrink it") -> None:
    """Refuse larger images in this process, as a small file can decompress to fill all memory.

    Args:
        count: width × height. Without this function Pillow's own limit holds, twice its
            ``Image.MAX_IMAGE_PIXELS``.
        advice: what to do about a larger image; parameters in braces, as for
            :class:`~src.UserError`.
    """
    global _advice
    _advice = advice
    # Pillow warns above its limit and refuses above twice that, which needs no warning filter.
    Image.MAX_IMAGE_PIXELS = count / 2  # type: ignore[assignment]
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def open_image(path: str | Path, decode: bool = True) -> Image.Image:
    """An image, upright (EXIF orientation applied), in the mode that the file has.

    Args:
        path: JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF and a few more, recognised by their content;
            HEIC if pillow-heif is installed. Of several frames, the first is read
            (:func:`count_frames`).
        decode: False reads only the header; the image is then not rotated upright.

    Raises:
        UserError: the file is missing, not an image, corrupt, or larger than :func:`limit_pixels`
            allows.
    """
    try:
        # Read all at once to decode: Pillow reads in small pieces, which takes a tenth of the time.
        return read_image(io.BytesIO(Path(path).read_bytes()) if decode else path, decode)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UserError as error:
        raise UserError(f"{path}: {error.args[0]}", advice=error.advice) from None
    except (OSError, ValueError) as error:  # a folder, no permission, a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from None


def read_image(file: str | Path | BinaryIO, decode: bool = True) -> Image.Image:
    """As :func:`open_image`, also from an open file; its errors do not name the file."""
    try:
        image = _identify(file)
        if decode:
            image.load()
        if image.mode in ("P", "PA") and image.palette is None:
            image.close()  # its file is still open if it was opened by name and not decoded
            raise ValueError("its palette is missing")
    except (UserError, FileNotFoundError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        text = f"refused, as it has more than {limit:g} million pixels"
        raise UserError(text, advice=_advice) from None
    except UnidentifiedImageError:
        raise UserError("not an image in a known format") from None
    except MemoryError:
        raise UserError("too large for this machine's memory") from None
    except Exception as error:  # a corrupt or hostile file makes decoders raise anything
        if isinstance(error, OSError) and error.errno:
            raise
        raise UserError(f"cannot be read ({error or type(error).__name__})") from None
    return upright(image) if decode else image


def _identify(file: str | Path | BinaryIO) -> Image.Image:
    """``Image.open``; the plug-in for HEIC is loaded when a file needs it."""
    try:
        return Image.open(file, formats=DECODERS)
    except UnidentifiedImageError:
        if not _is_heif(file):
            raise
    try:
        import pillow_heif
    except ImportError:
        raise UserError("HEIC needs pillow-heif: pip install '.[predict]'") from None
    pillow_heif.register_heif_opener()
    return Image.open(file, formats=("HEIF",))


def _is_heif(file: str | Path | BinaryIO) -> bool:
    if isinstance(file, (str, Path)):
        with open(file, "rb") as opened:
            return _is_heif(opened)
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    return head[4:8] == b"ftyp" and head[8:11] in (b"hei", b"hev", b"mif", b"msf")


def count_frames(image: Image.Image) -> int:
    """The number of frames or pages in the file; :func:`open_image` reads the first."""
    try:
        return getattr(image, "n_frames", 1) if image.format in _MANY else 1
    except Exception:  # after a sound first frame, the file may be corrupt in any way
        return 1


def oriented_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of the upright image, from the file's header alone."""
    with open_image(path, decode=False) as image:
        # 5 … 8 are rotated by 90°; Pillow has already swapped the size of a TIFF.
        turned = _orientation(image) >= 5 and image.format != "TIFF"
        return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 … 8; corrupt EXIF counts as 1."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the parser raises nearly anything on corrupt data
        return 1
    return value if value in range(1, 9) else 1


def turn(image: Image.Image) -> Image.Image:
    """As :func:`upright`, for the pixels only: the metadata stay unchanged."""
    method = _TURNS.get(_orientation(image))
    return image if method is None else image.transpose(method)


def upright(image: Image.Image) -> Image.Image:
    """The image, rotated upright as its EXIF orientation says."""
    turned = turn(image)
    if turned is image:
        return image
    turned.format = image.format  # Pillow drops both
    turned.n_frames = count_frames(image)  # type: ignore[attr-defined]
    # Pillow's exif_transpose would rewrite EXIF, lose parts, and fail if a tag is corrupt.
    turned.info["exif"] = upright_exif(raw_exif(image), turned.size)
    turned.info["xmp"] = upright_xmp(raw_xmp(image), turned.size)
    for copy in ("Raw profile type exif", "XML:com.adobe.xmp"):  # PNG's copies, still not upright
        turned.info.pop(copy, None)
    return turned


def take(image: Image.Image) -> Image.Image:
    """Move the pixels of an image, which is closed, to one without a file."""
    image.load()
    taken = image._new(image.im)
    taken.readonly = image.readonly  # it is in another's memory
    image.close()
    return taken


def tidy(image: Image.Image) -> None:
    """Return freed memory to the system, if the image is so large that it matters."""
    if image.width * image.height > LARGE:
        return_freed_memory()


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits, for the network: transparency on white, colour profiles not applied."""
    image = to_straight(to_8_bits(image))
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    result = Image.new("RGB", image.size)
    for box in strips(image.size):
        strip = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), box)
    return result


def to_straight(image: Image.Image) -> Image.Image:
    """Undo premultiplied alpha (modes La and RGBa); other modes are unchanged."""
    return image.convert(image.mode.upper()) if image.mode in ("La", "RGBa") else image


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits or floats to mode L (Pillow would clip); other modes unchanged.

    Integers up to 65535 count as 16-bit values, floats up to 1 as fractions, up to 255 as levels;
    if there are larger values, the largest becomes 255. Negative values and NaN become 0.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        return image

    def grey(box: Box) -> np.ndarray:
        levels = np.asarray(image.crop(box), dtype=np.float32)
        return np.nan_to_num(levels, posinf=0, neginf=0)

    highest = max((grey(box).max(initial=0) for box in strips(image.size)), default=0)
    top = max(highest, 65535.0) if image.mode != "F" else 1.0 if highest <= 1 else max(highest, 255)
    scaled = Image.new("L", image.size)
    for box in strips(image.size):
        levels = (grey(box).clip(0, top) / top * 255).round()
        scaled.paste(Image.fromarray(levels.astype(np.uint8)), box)
    scaled.info = {key: value for key, value in image.info.items() if key != "transparency"}
    hidden = image.info.get("transparency")
    if isinstance(hidden, int):  # PNG's transparent level
        alpha = Image.new("L", image.size)
        for box in strips(image.size):
            alpha.paste(Image.fromarray(grey(box) != hidden).convert("L"), box)
        scaled.putalpha(alpha)
    return scaled


def from_array(array: np.ndarray) -> Image.Image:
    """Convert an array to an image.

    Args:
        array: H×W, H×W×1, H×W×3 (RGB) or H×W×4 (RGBA): bool, uint8, uint16, or float in [0, 1].

    Raises:
        UserError: another shape or type, or floats that are not in [0, 1].
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if 0 in array.shape or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise UserError(f"an array of {list(array.shape)}; give H×W, H×W×3 or H×W×4")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all():
            raise UserError("an array with values that are not finite")
        if not (array.min() >= 0 and array.max() <= 1):
            raise UserError("an array of floats that are not all in [0, 1]; divide it by 255?")
        array = (array.astype(np.float32) * 255).round()
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        array = (array / 257).round()
    elif array.dtype == bool:
        array = array * 255
    elif array.dtype != np.uint8:
        raise UserError(f"an array of {array.dtype}; give uint8, uint16, or floats in [0, 1]")
    return Image.fromarray(array.astype(np.uint8, copy=False))


def to_grey(saliency: np.ndarray) -> Image.Image:
    """Convert a map H×W in [0, 1] to an image of mode L, rounded."""
    grey = Image.new("L", saliency.shape[::-1])
    for box in strips(grey.size):
        levels = saliency[box[1] : box[3]] * 255
        grey.paste(Image.fromarray(levels.round(out=levels).astype(np.uint8)), box)
    return grey


def strips(size: tuple[int, int], pixels: int = STRIP) -> Iterator[Box]:
    """Split an image into boxes of rows, so that large ones take little memory to process.

    Args:
        size: width and height of the image.
        pixels: the maximum in a strip, unless a row has more.

    Example:
        >>> list(strips((4, 5), 8))
        [(0, 0, 4, 2), (0, 2, 4, 4), (0, 4, 4, 5)]
    """
    width, height = size
    rows = max(1, pixels // max(1, width))
    for top in range(0, height, rows):
        yield 0, top, width, min(height, top + rows)


def shrink_image(image: Image.Image, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Shrink an image by averaging, with Pillow's ``BOX`` filter.

    Args:
        image: with 8 bits per channel.
        size: width and height, none larger than the image's.
        mode: of the result: ``RGB``, as by :func:`to_rgb`, or ``RGBa``.
    """
    # One axis after the other, as Pillow does, but without a full copy in that mode.
    narrow = Image.new(mode, (size[0], image.height))
    for left, top, right, bottom in strips(image.size):
        strip = image.crop((left, top, right, bottom))
        strip = to_rgb(strip) if mode == "RGB" else strip.convert(mode)
        strip = strip.resize((size[0], bottom - top), Image.Resampling.BOX)
        narrow.paste(strip, (0, top))
    return narrow.resize(size, Image.Resampling.BOX)


def shrink(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Shrink an array by averaging, with Pillow's ``BOX`` filter.

    Args:
        array: H×W float32.
        size: width and height, none larger than the array's.

    Returns:
        Float32 of that size.
    """
    # One axis after the other, as Pillow does; an image of the whole would be another copy.
    narrow = [
        np.asarray(
            Image.fromarray(array[top:bottom]).resize((size[0], bottom - top), Image.Resampling.BOX)
        )
        for _, top, _, bottom in strips(array.shape[::-1])
    ]
    return np.array(Image.fromarray(np.concatenate(narrow)).resize(size, Image.Resampling.BOX))
