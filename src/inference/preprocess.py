"""Ways from a picture to the network's input, and from its map back to the picture's size."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..pictures.images import to_rgb

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as the official code and every published weight uses
STD = (0.229, 0.224, 0.225)
LANCZOS = Image.Resampling.LANCZOS


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture to a 3×H×W uint8 tensor; it keeps Pillow's memory order (channels last)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_input(picture: Tensor, size: int) -> Tensor:
    """3×H×W uint8 → 3×size×size uint8: bilinear with antialias, aspect not kept (as published)."""
    if picture.shape[1:] == (size, size):
        return picture
    # A batch of one, made where its stride tells the memory order; else torch takes the slow way.
    stack = picture.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(stack, (size, size), mode="bilinear", antialias=True)[0]


def normalize(pictures: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """N×3×H×W uint8 to what a network reads: /255, ImageNet mean and std, channels last."""
    mean, std = _mean_and_std(pictures.device)
    floats = pictures.to(torch.float32, memory_format=torch.channels_last)
    return floats.div_(255).sub_(mean).div_(std).to(dtype)


@lru_cache
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Once per device: a copy to a GPU makes the program wait for it."""
    return tuple(torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))


def resize_map(saliency: Tensor, size: Sequence[int]) -> Tensor:
    """Map(s) …×S×S to …×H×W, bilinear (with antialias where it shrinks), still in [0, 1]."""
    stack = saliency.reshape(1, -1, *saliency.shape[-2:])
    resized = F.interpolate(stack, size=tuple(size), mode="bilinear", antialias=True)
    return resized.view(*saliency.shape[:-2], *size).clamp_(0, 1)


class Preset:
    """The way that training, validation and prediction share: /255, bilinear with antialias."""

    exact = False  # whether it needs float32, because another program's results are its measure

    def prepare(self, image: Image.Image, size: int) -> Tensor:
        """An upright picture to 3×size×size uint8."""
        return resize_input(to_tensor(to_rgb(image)), size)

    def normalize(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        """N×3×S×S uint8 to what the network reads."""
        return normalize(pictures, dtype)

    def finish(self, maps: Tensor) -> Tensor:
        """Probabilities N×C×S×S float32 in [0, 1] as they are."""
        return maps

    def resize(self, saliency: Tensor, size: Sequence[int]) -> Tensor:
        """As :func:`resize_map`."""
        return resize_map(saliency, size)


class Rembg(Preset):
    """What rembg 2.0 does around a U²-Net (``sessions/u2net_custom.py``), for equal masks.

    Lanczos both ways, the input divided by its own maximum, the map stretched by its minimum and
    maximum and cut to 8 bits. A picture without an object becomes noise by that stretching, which
    is why it is no default here. An alpha channel is ignored, as it is there.
    """

    exact = True

    def prepare(self, image: Image.Image, size: int) -> Tensor:
        """An upright picture to 3×size×size uint8."""
        return to_tensor(image.convert("RGB").resize((size, size), LANCZOS))

    def normalize(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        """As :func:`normalize`, with each picture's maximum in place of 255."""
        highest = pictures.float().amax((1, 2, 3), keepdim=True).clamp_(min=1e-6)
        return normalize(pictures.float() * (255 / highest), dtype)

    def finish(self, maps: Tensor) -> Tensor:
        """Each map stretched, in 256 steps rounded down; a constant one becomes 0."""
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        stretched = (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
        return (stretched * 255).floor_() / 255

    def resize(self, saliency: Tensor, size: Sequence[int]) -> Tensor:
        """Map(s) …×S×S of 256 steps to …×H×W, by Pillow's Lanczos."""
        levels = (saliency * 255).round().to(torch.uint8).cpu()
        flat = levels.reshape(-1, *levels.shape[-2:]).numpy()
        resized = [Image.fromarray(one).resize((size[1], size[0]), LANCZOS) for one in flat]
        stack = torch.from_numpy(np.stack([np.asarray(one) for one in resized]))
        return (stack / 255).view(*saliency.shape[:-2], *size).to(saliency.device)


PRESETS: dict[str, Preset] = {"default": Preset(), "rembg": Rembg()}


def pick_preset(name: str) -> Preset:
    """By its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
