"""The train and eval presets, on torchvision.transforms.v2, written once.

Both take an uint8 picture (3×H×W) and its mask (1×H×W), and stay uint8: the engine normalises on
the device, where it costs next to nothing and a batch travels in a quarter of the bytes.
"""

import io
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from src.errors import UserError
from src.inference.preprocess import resize_input, to_tensor


class TrainPreset:
    """Resize to img_size² (aspect not kept), random crop of crop_size², horizontal flip.

    The published recipe (320 and 288), with the horizontal flip that later work uses in place of
    the vertical one. The crop is cut out first, in whole pixels of the picture, as what it throws
    away needs no resizing. Mask values stay what they are.

    Args:
        img_size, crop_size: in pixels.
        strong: vary much more. Seven crops in ten have 0.3 to 1 of the picture's area and an aspect
            from 0.6 to 1.67, the others are the whole picture; brightness, contrast and saturation,
            grey, blur, noise and JPEG artefacts; and one picture in seven gets the object of
            another one pasted in (:func:`paste`).
        classes: masks hold class indices; nothing is pasted then.

    Raises:
        UserError: the crop is larger than the picture.
    """

    def __init__(
        self, img_size: int, crop_size: int, strong: bool = False, classes: bool = False
    ) -> None:
        if not 0 < crop_size <= img_size:
            raise UserError(f"--crop-size {crop_size} must be in 1 … --img-size {img_size}")
        self.img_size = img_size
        self.share = crop_size / img_size
        self.crop_size = crop_size
        self.flip = v2.RandomHorizontalFlip(0.5)
        self.strong = strong
        self.paste = 0.15 if strong and not classes else 0.0  # how often
        self.resized_crop = v2.RandomResizedCrop(crop_size, scale=(0.3, 1), ratio=(0.6, 1 / 0.6))

    def at(self, epoch: int) -> "TrainPreset":
        """The preset of an epoch: this one."""
        return self

    def __call__(self, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if mask.shape[-2:] != picture.shape[-2:]:
            mask = _resize_mask(mask, picture.shape[-2:])
        picture, mask = self.flip(*self._crop(tv_tensors.Image(picture), tv_tensors.Mask(mask)))
        picture = resize_input(picture.as_subclass(Tensor), self.crop_size)
        if self.strong:
            picture = _DEGRADE(picture)
        return picture, _resize_mask(mask.as_subclass(Tensor), (self.crop_size, self.crop_size))

    def _crop(self, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        height, width = picture.shape[-2:]
        if not self.strong:
            height, width = (max(1, round(side * self.share)) for side in (height, width))
            return _random_crop(height, width)(picture, mask)
        if torch.rand(()) < 0.3:
            return picture, mask
        box = self.resized_crop.make_params([picture])
        return v2.functional.crop(picture, **box), v2.functional.crop(mask, **box)


def _jpeg(picture: Tensor) -> Tensor:
    """As saved and opened again, at a random quality."""
    saved = io.BytesIO()
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    image.save(saved, "JPEG", quality=int(torch.randint(30, 91, ())))
    return to_tensor(Image.open(saved))


_DEGRADE = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.7),
        v2.RandomGrayscale(0.1),
        v2.RandomApply([v2.GaussianBlur(5, (0.1, 2))], 0.15),
        v2.RandomApply([v2.GaussianNoise(sigma=0.05)], 0.15),
        v2.RandomApply([v2.Lambda(_jpeg)], 0.2),
    ]
)


def paste(picture: Tensor, mask: Tensor, onto: Tensor, mask_there: Tensor) -> tuple[Tensor, Tensor]:
    """The object of one picture onto another of the same size: both objects, and what was behind.

    The seam is blurred by a pixel, so that it doesn't give the object away.
    """
    soft = v2.functional.gaussian_blur(mask.float(), [3, 3])
    mixed = torch.lerp(onto.float(), picture.float(), soft)
    return mixed.round().to(torch.uint8), mask | mask_there


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

    def at(self, epoch: int) -> "EvalPreset":
        """The preset of an epoch: this one."""
        return self

    def __call__(self, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return resize_input(picture, self.img_size), mask


class Growing:
    """Presets that take turns as a run goes on: small pictures first, which cost less.

    Args:
        presets: of one kind, in order.
        starts: the epoch, counted from 0, from which each holds; the first is 0.
    """

    def __init__(
        self, presets: Sequence[TrainPreset] | Sequence[EvalPreset], starts: Sequence[int]
    ) -> None:
        self.presets = presets
        self.starts = starts

    def at(self, epoch: int) -> TrainPreset | EvalPreset:
        """The preset of an epoch."""
        return self.presets[bisect_right(self.starts, epoch) - 1]
