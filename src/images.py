"""Pictures from disk, upright and RGB, and their way to the network."""

import io
import struct
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import UserError

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as the official code and every published weight uses
STD = (0.229, 0.224, 0.225)
_ORIENTATION = 0x0112


def list_images(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted; hidden files (macOS writes ._NAME.jpg) are none."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.name[0] != ".")
    return sorted(path for path in files if path.is_file())


def open_image(path: str | Path, decode: bool = True) -> Image.Image:
    """A picture, upright (EXIF orientation applied), in the mode the file has.

    Args:
        path: any format that Pillow reads.
        decode: False reads the header alone; the picture is then not turned upright.

    Raises:
        UserError: the file is missing, not a picture, or torn.
    """
    try:
        # Read whole to decode: Pillow alone reads in small pieces, a tenth of the time.
        image = Image.open(io.BytesIO(Path(path).read_bytes()) if decode else path)
        if decode:
            image.load()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture in a known format") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: refused ({error})") from None
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's words for torn files
        raise UserError(f"{path}: cannot be read ({error})") from None
    try:
        return upright(image) if decode else image
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def oriented_size(path: str | Path) -> tuple[int, int]:
    """Width and height in pixels of the upright picture, from the file's header alone."""
    with open_image(path, decode=False) as image:
        # 5 … 8 lie on their side; of a TIFF, Pillow has turned the size already.
        turned = _orientation(image) >= 5 and image.format != "TIFF"
        return (image.height, image.width) if turned else image.size


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 … 8; garbled EXIF counts as none."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, struct.error, ValueError, TypeError, OSError):
        return 1
    return value if value in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says it is to be seen."""
    if _orientation(image) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, struct.error, ValueError, TypeError, OSError) as error:
        raise UserError(f"garbled EXIF data ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, 8 bits, for the network: transparency lies on white, a colour profile is not applied."""
    image = to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or of floats to mode L, scaled (Pillow would clip); others as they are.

    Integers up to 65535 are 16-bit values; floats up to 1 are shares, up to 255 levels; where there
    are larger values, the largest becomes 255. Negative ones and what is no number become 0.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        return image
    grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0)
    highest = grey.max(initial=0)
    top = max(highest, 65535.0) if image.mode != "F" else 1.0 if highest <= 1 else max(highest, 255)
    scaled = Image.fromarray((grey / top * 255).clip(0, 255).round().astype(np.uint8))
    scaled.info = image.info
    return scaled


def from_array(array: np.ndarray) -> Image.Image:
    """An array as a picture.

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
        if not (array.min() >= 0 and array.max() <= 1):  # nan neither
            raise UserError("an array of floats that are not all in [0, 1]; divide it by 255?")
        array = (array * 255).round()
    elif array.dtype == np.uint16:
        array = (array / 257).round()
    elif array.dtype == bool:
        array = array * 255
    elif array.dtype != np.uint8:
        raise UserError(f"an array of {array.dtype}; give uint8, uint16, or floats in [0, 1]")
    return Image.fromarray(array.astype(np.uint8, copy=False))


def to_grey(saliency: np.ndarray) -> Image.Image:
    """A map H×W in [0, 1] to a picture of mode L, rounded."""
    return Image.fromarray((saliency * 255).round().astype(np.uint8))


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture to a 3×H×W uint8 tensor; it keeps Pillow's memory order (channels last)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_input(picture: Tensor, size: int) -> Tensor:
    """3×H×W uint8 → 3×size×size uint8: bilinear with antialias, aspect not kept (as published)."""
    return TF.resize(picture, [size, size], antialias=True)


def normalize(pictures: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """N×3×H×W uint8 to what a network reads: /255, ImageNet mean and std, channels last."""
    mean, std = _mean_and_std(pictures.device)
    floats = pictures.to(torch.float32, memory_format=torch.channels_last)
    return floats.div_(255).sub_(mean).div_(std).to(dtype)


@lru_cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Once per device: a copy to a GPU makes the program wait for it."""
    return tuple(torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))
