"""From an image to the network's input, and from the network's map back to the image's size.

A network needs the preprocessing that it was trained with: the mean and standard deviation of its
input and the way images are resized belong to its weights. All of that is in this file.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..networks.base import MIN_SIZE
from ..networks.config import MEAN, STD, Preprocessing
from ..pictures.images import strips, to_8_bits, to_rgb
from .sizes import Size, parse_size


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as a 3×H×W uint8 tensor; Pillow's memory order (channels last) is kept."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_input(images: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Resize bilinearly with antialiasing; a square does not keep the aspect ratio (as published).

    Args:
        images: 3×H×W or N×3×H×W, uint8.
        size: side of a square, or height and width, in pixels.

    Returns:
        3×H×W or N×3×H×W of that size, uint8.

    Example:
        >>> resize_input(torch.zeros(3, 30, 40, dtype=torch.uint8), 32).shape
        torch.Size([3, 32, 32])
    """
    size = (size, size) if isinstance(size, int) else size
    if images.shape[-2:] == size:
        return images
    # Make a batch of one whose strides show the memory order; else torch takes a slow path.
    single = images.ndim == 3
    batch = images.permute(1, 2, 0)[None].permute(0, 3, 1, 2) if single else images
    # GPUs have no such kernel for integers.
    floats = batch if batch.device.type == "cpu" else batch.float()
    resized = F.interpolate(floats, size, mode="bilinear", antialias=True)
    resized = resized if resized.dtype == batch.dtype else resized.round_().to(batch.dtype)
    return resized[0] if single else resized


def normalize(
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Tensor:
    """Scale images as the network expects: divided by 255, minus the mean, divided by std; channels
    last.

    Args:
        images: N×3×H×W, uint8 or floats in [0, 255].
        dtype: of the result; the arithmetic is float32.
        mean, std: of the network's config; ImageNet's by default.

    Returns:
        N×3×H×W of ``dtype``.
    """
    shift, scale = _mean_and_std(images.device, mean, std)
    own = images.dtype == torch.float32  # the caller's tensor, not to be overwritten
    floats = images.to(torch.float32, memory_format=torch.channels_last, copy=own)
    return floats.div_(255).sub_(shift).div_(scale).to(dtype)


@lru_cache
def _mean_and_std(device: torch.device, *both: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """3×1×1 each; made once per device, because a copy to a GPU makes the program wait for it."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in both)
    return mean, std


def resize_map(saliency: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps bilinearly (with antialiasing where they shrink).

    Args:
        saliency: …×S×S float32 in [0, 1].
        size: height and width in pixels.

    Returns:
        …×H×W float32 in [0, 1].

    Example:
        >>> resize_map(torch.rand(2, 320, 320), (40, 60)).shape
        torch.Size([2, 40, 60])
    """
    channels = saliency.reshape(1, -1, *saliency.shape[-2:])
    resized = F.interpolate(channels, size=tuple(size), mode="bilinear", antialias=True)
    return resized.view(*saliency.shape[:-2], *size).clamp_(0, 1)


def as_uint8(images: Tensor) -> Tensor:
    """A user's tensor as N×3×H×W uint8, rounded as :func:`~..pictures.images.from_array` does."""
    if not isinstance(images, Tensor):
        raise UserError(f"expected a tensor N×3×H×W, got {type(images).__name__}", "images")
    if images.layout != torch.strided or images.is_meta:
        raise UserError("sparse and meta tensors are not supported; give a dense one")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise UserError(f"a tensor of {list(images.shape)}; give 3×H×W or N×3×H×W")
    images = images.detach()
    if images.dtype == torch.uint8 or not len(images):
        return images.to(torch.uint8)
    if images.is_floating_point():
        images = images.float()
        if not torch.isfinite(images).all():
            raise UserError("a tensor with values that are not finite")
        if not (images.amin() >= 0 and images.amax() <= 1):
            raise UserError("a tensor of floats that are not all in [0, 1]; divide it by 255?")
        return (images * 255).round().to(torch.uint8)
    if images.dtype == torch.uint16:
        return (images.float() / 257).round().to(torch.uint8)
    if images.dtype == torch.bool:
        return images.to(torch.uint8) * 255
    kind = str(images.dtype).removeprefix("torch.")
    raise UserError(f"a tensor of {kind}; give uint8, uint16, or floats in [0, 1]")


class Preset:
    """Pre- and postprocessing of a network; this preset is that of training and validation too."""

    exact = False  # whether float32 is needed to reproduce another program's masks

    def pick_size(self, network: Preprocessing, trained_at: int) -> int:
        """The side in pixels of the input of the network with this config."""
        return trained_at

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """Convert an upright image to 3×H×W uint8; ``size`` is (height, width)."""
        image = to_8_bits(image)  # else each strip would be scaled by its own maximum
        # torch resizes the width first, so strips of rows give the same as the whole image.
        narrow = [
            resize_input(to_tensor(to_rgb(image.crop(box))), (box[3] - box[1], size[1]))
            for box in strips(image.size)
        ]
        rows = torch.cat([strip.permute(1, 2, 0) for strip in narrow])  # in Pillow's memory order
        return resize_input(rows.permute(2, 0, 1), size)

    def prepare_batch(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """As :meth:`prepare`, for N×3×H×W uint8 RGB, on the same device."""
        return resize_input(images, size)

    def normalize(self, images: Tensor, dtype: torch.dtype, network: Preprocessing) -> Tensor:
        """Normalize prepared images N×3×S×S uint8 for the network with this config."""
        return normalize(images, dtype, network.mean, network.std)

    def finish(self, maps: Tensor) -> Tensor:
        """The network's probabilities N×C×S×S float32, in [0, 1], unchanged."""
        return maps

    def resize(self, saliency: Tensor, size: Sequence[int]) -> Tensor:
        """Resize maps …×S×S to …×H×W, see :func:`resize_map`."""
        return resize_map(saliency, size)


class Rembg(Preset):
    """Pre- and postprocessing of rembg 2.0 (``sessions/u2net_custom.py``), for the same masks.

    Lanczos both ways; the input is divided by its own maximum; the map is stretched by its minimum
    and maximum and truncated to 8 bits. Stretching turns the map of an image without an object into
    noise, which is why this is not the default. An alpha channel is ignored, as rembg does. The
    network sees squares of 320 pixels (IS-Net of 1024), whatever size it was trained at.
    """

    exact = True

    def pick_size(self, network: Preprocessing, trained_at: int) -> int:
        """As :meth:`Preset.pick_size`, but only by the kind of network."""
        return 320 if getattr(network, "stem", None) is None else 1024

    def prepare(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        """Convert an upright image to 3×H×W uint8; ``size`` is (height, width)."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        return to_tensor(rgb.resize(size[::-1], Image.Resampling.LANCZOS))

    def prepare_batch(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """As :meth:`prepare`, one image at a time, as the Lanczos filter is Pillow's."""
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        prepared = [self.prepare(Image.fromarray(array), size) for array in arrays]
        return torch.stack(prepared).to(images.device)

    def normalize(self, images: Tensor, dtype: torch.dtype, network: Preprocessing) -> Tensor:
        """As :func:`normalize`, with each image's maximum in place of 255."""
        highest = images.float().amax((1, 2, 3), keepdim=True).clamp_(min=1e-6)
        return normalize(images.float() * (255 / highest), dtype, network.mean, network.std)

    def finish(self, maps: Tensor) -> Tensor:
        """Stretch each map, in 256 levels rounded down; a constant one becomes 0."""
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        stretched = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
        return (stretched * 255).floor_() / 255

    def resize(self, saliency: Tensor, size: Sequence[int]) -> Tensor:
        """Resize maps …×S×S of 256 levels to …×H×W, with Pillow's Lanczos filter."""
        height, width = size
        levels = (saliency * 255).round().to(torch.uint8).cpu()
        maps = levels.reshape(-1, *levels.shape[-2:]).numpy()
        result = torch.empty(len(maps), height, width)
        for one, resized in zip(maps, result, strict=True):
            image = Image.fromarray(one).resize((width, height), Image.Resampling.LANCZOS)
            for box in strips(image.size):
                strip = torch.from_numpy(np.array(image.crop(box)))
                torch.div(strip, 255, out=resized[box[1] : box[3]])
        return result.view(*saliency.shape[:-2], height, width).to(saliency.device)


PRESETS: dict[str, Preset] = {"default": Preset(), "rembg": Rembg()}


def pick_preset(name: str) -> Preset:
    """Look up a preset by its name.

    Raises:
        UserError: there is no preset of that name.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(f"expected one of {', '.join(PRESETS)}", "preset", name)
    return PRESETS[name]


def check_preset(name: str, img_size: Size | None, detail: int, tta: bool) -> None:
    """Check a preset and the options that do not depend on the network.

    Args:
        name: of the preset.
        img_size, detail, tta: as :class:`~.predictor.Predictor` takes them.

    Raises:
        UserError: there is no preset of that name, it cannot be combined with the other options,
            ``detail`` is not an integer ≥ 0, or ``tta`` is neither True nor False.
    """
    if type(detail) is not int or detail < 0:
        raise UserError("expected an integer ≥ 0", "detail", detail)
    if type(tta) is not bool:
        raise UserError("expected True or False", "tta", tta)
    size, exact = parse_size(img_size, MIN_SIZE).value, pick_preset(name).exact
    if exact and not isinstance(size, int):
        raise UserError("rembg always uses square inputs", "img_size", size)
    if exact and detail:
        text = f"is for one map of an object, not for the preset {name}"
        raise UserError(text, "detail", detail)
