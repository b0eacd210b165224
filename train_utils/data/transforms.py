"""Transform presets for training and evaluation, built on torchvision.transforms.v2.

Both take an image (3×H×W uint8) and its mask (1×H×W uint8), and return uint8: images are normalised
on the device, where it costs next to nothing, and a batch is transferred in a quarter of the bytes.
"""

import io
import random
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
from src.inference.sizes import InputSize

AUGMENTATIONS = "none", "basic", "colour", "strong"


class TrainPreset:
    """Resize to img_size² (aspect not kept), crop crop_size² at random, flip horizontally.

    The published recipe (320 and 288), with the horizontal flip that later work uses in place of
    the vertical one. The crop is taken first, in whole pixels of the image, as dropped pixels need
    no resizing. Mask values are not interpolated, unless they are soft. Called with an image 3×H×W
    uint8 and its mask 1×h×w uint8, it returns both at crop_size².

    Args:
        img_size: side in pixels of the resized image.
        crop_size: side in pixels of the crop, at most ``img_size``.
        augment: ``none``; ``basic``: a horizontal flip of every other image; ``colour``:
            brightness, contrast, saturation and grey too; ``strong``: also, seven crops in ten
            have 0.3 to 1 of the image's area and an aspect from 0.6 to 1.67, the others are the
            whole image; blur, noise and JPEG artefacts vary; and one image in seven gets the
            object of another one pasted in (:func:`paste`).
        classes: masks hold class indices; nothing is pasted then.
        soft: masks hold levels 0 … 255, and are resized as such.

    Raises:
        UserError: the crop is larger than the image, or ``augment`` is unknown.

    Example:
        >>> image = torch.zeros(3, 300, 400, dtype=torch.uint8)
        >>> TrainPreset(320, 288)(image, image[:1])[0].shape
        torch.Size([3, 288, 288])
    """

    def __init__(
        self,
        img_size: int,
        crop_size: int,
        augment: str = "basic",
        classes: bool = False,
        soft: bool = False,
    ) -> None:
        if augment not in AUGMENTATIONS:
            raise UserError(f"expected one of {', '.join(AUGMENTATIONS)}", "augment", augment)
        if not 0 < crop_size <= img_size:
            raise UserError(f"must be from 1 to img_size, {img_size}", "crop_size", crop_size)
        self.img_size = img_size
        self.share = crop_size / img_size
        self.crop_size = crop_size
        self.flip = v2.RandomHorizontalFlip(0.0 if augment == "none" else 0.5)
        self.strong = augment == "strong"
        self.degrade = {"strong": _DEGRADE, "colour": _RECOLOUR}.get(augment)
        self.soft = soft
        self.paste = 0.15 if self.strong and not classes else 0.0  # how often
        self.resized_crop = v2.RandomResizedCrop(crop_size, scale=(0.3, 1), ratio=(0.6, 1 / 0.6))

    def at(self, epoch: int, batch: int = 0) -> "TrainPreset":
        """The preset of a batch: this one."""
        return self

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if mask.shape[-2:] != image.shape[-2:]:
            mask = _resize_mask(mask, image.shape[-2:], self.soft)
        image, mask = self.flip(*self._crop(tv_tensors.Image(image), tv_tensors.Mask(mask)))
        image = resize_input(image.as_subclass(Tensor), self.crop_size)
        if self.degrade:
            image = self.degrade(image)
        side = self.crop_size
        return image, _resize_mask(mask.as_subclass(Tensor), (side, side), self.soft)

    def _crop(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        height, width = image.shape[-2:]
        if not self.strong:
            height, width = (max(1, round(side * self.share)) for side in (height, width))
            return _random_crop(height, width)(image, mask)
        if torch.rand(()) < 0.3:
            return image, mask
        box = self.resized_crop.make_params([image])
        return v2.functional.crop(image, **box), v2.functional.crop(mask, **box)


def _jpeg(image: Tensor) -> Tensor:
    """The image as saved to JPEG and opened again, at a random quality."""
    saved = io.BytesIO()
    pixels = Image.fromarray(image.permute(1, 2, 0).numpy())
    pixels.save(saved, "JPEG", quality=int(torch.randint(30, 91, ())))
    return to_tensor(Image.open(saved))


_RECOLOUR = v2.Compose(
    [v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4)], 0.7), v2.RandomGrayscale(0.1)]
)
_DEGRADE = v2.Compose(
    [
        _RECOLOUR,
        v2.RandomApply([v2.GaussianBlur(5, (0.1, 2))], 0.15),
        v2.RandomApply([v2.GaussianNoise(sigma=0.05)], 0.15),
        v2.RandomApply([v2.Lambda(_jpeg)], 0.2),
    ]
)


def paste(
    image: Tensor, mask: Tensor, onto: Tensor, mask_there: Tensor, white: int = 1
) -> tuple[Tensor, Tensor]:
    """Paste the object of one image into another one.

    The seam is blurred by a pixel, so that it doesn't give the object away.

    Args:
        image: with the object, 3×H×W uint8.
        mask: of the object, 1×H×W uint8 of 0 … ``white``.
        onto: the image to paste into, 3×H×W uint8.
        mask_there: its mask.
        white: the masks' highest value: 1, or 255 if they are soft.

    Returns:
        The image with both objects, and the mask of both.
    """
    soft = v2.functional.gaussian_blur(mask.float() / white, [3, 3])
    mixed = torch.lerp(onto.float(), image.float(), soft)
    return mixed.round().to(torch.uint8), torch.maximum(mask, mask_there)


@lru_cache(maxsize=256)  # making one takes longer than using it
def _random_crop(height: int, width: int) -> v2.RandomCrop:
    return v2.RandomCrop((height, width))


def _resize_mask(mask: Tensor, size: Sequence[int], soft: bool) -> Tensor:
    if soft:
        resized = F.interpolate(mask[None].float(), tuple(size), mode="bilinear", antialias=True)
        return resized[0].round().to(torch.uint8)
    # v2.Resize samples masks at pixel corners: up to half a pixel off the image's centres.
    return F.interpolate(mask[None], tuple(size), mode="nearest-exact")[0]


class EvalPreset:
    """The image as the predictor sees it; the mask at its own size, at which maps are scored.

    Args:
        img_size: side in pixels of the resized image, or a size that depends on the image.

    Example:
        >>> image = torch.zeros(3, 300, 400, dtype=torch.uint8)
        >>> [part.shape for part in EvalPreset(320)(image, image[:1])]
        [torch.Size([3, 320, 320]), torch.Size([1, 300, 400])]
    """

    paste = 0.0  # no object of another image
    soft = False

    def __init__(self, img_size: int | InputSize) -> None:
        if isinstance(img_size, int):
            img_size = InputSize(img_size, img_size)
        self.size = img_size
        self.img_size = self.size.width

    def at(self, epoch: int, batch: int = 0) -> "EvalPreset":
        """The preset of a batch: this one."""
        return self

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return resize_input(image, self.size.fit(*image.shape[-2:])), mask


class Varying:
    """A random preset for each batch: images of many sizes, but one size per batch.

    The draw depends only on (seed, epoch, batch), so it is the same in all workers and on all
    ranks, and a resumed run continues with the sizes that it would have had.

    Args:
        presets: to draw from, all equally likely.
        seed: of the draw.

    Example:
        >>> varying = Varying([TrainPreset(size, size) for size in (192, 224, 256)])
        >>> [varying.at(epoch=0, batch=number).img_size for number in range(5)]
        [256, 256, 192, 192, 192]
    """

    def __init__(self, presets: Sequence[TrainPreset], seed: int = 0) -> None:
        self.presets = presets
        self.seed = seed

    def at(self, epoch: int, batch: int = 0) -> TrainPreset:
        """The preset of a batch."""
        return random.Random(repr((self.seed, epoch, batch))).choice(self.presets)


class Growing:
    """Presets that follow one another as a run proceeds: small images first, which cost less.

    Args:
        presets: of one purpose, in order.
        starts: the first epoch of each, counted from 0; the first is 0.

    Example:
        >>> growing = Growing([EvalPreset(160), EvalPreset(320)], starts=[0, 5])
        >>> growing.at(epoch=7).img_size
        320
    """

    def __init__(
        self, presets: Sequence[TrainPreset | Varying] | Sequence[EvalPreset], starts: Sequence[int]
    ) -> None:
        self.presets = presets
        self.starts = starts

    def at(self, epoch: int, batch: int = 0) -> TrainPreset | EvalPreset:
        """The preset of a batch."""
        return self.presets[bisect_right(self.starts, epoch) - 1].at(epoch, batch)
