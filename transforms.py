"""The train and eval presets, on torchvision.transforms.v2, written once.

Both take an uint8 picture (3×H×W) and its mask (1×H×W), and stay uint8: the engine normalises on
the device, where it costs next to nothing and a batch travels in a quarter of the bytes.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from src.errors import UserError
from src.images import resize_input


class TrainPreset:
    """Resize to img_size² (aspect not kept), random crop of crop_size², horizontal flip.

    The published recipe (320 and 288), with the horizontal flip that later work uses in place of
    the vertical one. The crop is cut out first, in whole pixels of the picture, as what it throws
    away needs no resizing. Mask values stay what they are.

    Raises:
        UserError: the crop is larger than the picture.
    """

    def __init__(self, img_size: int, crop_size: int) -> None:
        if not 0 < crop_size <= img_size:
            raise UserError(f"--crop-size {crop_size} must be in 1 … --img-size {img_size}")
        self.share = crop_size / img_size
        self.crop_size = crop_size
        self.flip = v2.RandomHorizontalFlip(0.5)

    def __call__(self, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if mask.shape[-2:] != picture.shape[-2:]:
            mask = _resize_mask(mask, picture.shape[-2:])
        height, width = (max(1, round(side * self.share)) for side in picture.shape[-2:])
        both = tv_tensors.Image(picture), tv_tensors.Mask(mask)
        picture, mask = self.flip(*_random_crop(height, width)(*both))
        picture = resize_input(picture.as_subclass(Tensor), self.crop_size)
        return picture, _resize_mask(mask.as_subclass(Tensor), (self.crop_size, self.crop_size))


@lru_cache(maxsize=256)  # making one takes longer than using it
def _random_crop(height: int, width: int) -> v2.RandomCrop:
    return v2.RandomCrop((height, width))


def _resize_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    # v2.Resize samples masks at pixel corners: up to half a pixel beside the picture's centres.
    return F.interpolate(mask[None], tuple(size), mode="nearest-exact")[0]


class EvalPreset:
    """The picture as the predictor sees it, the mask at its own size, as maps are scored there."""

    def __init__(self, img_size: int) -> None:
        self.img_size = img_size

    def __call__(self, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return resize_input(picture, self.img_size), mask
