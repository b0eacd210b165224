"""The train and eval presets, on torchvision.transforms.v2, written once.

Both take an uint8 picture (3×H×W) and its mask (1×H×W), and stay uint8: the engine normalises on
the device, where it costs next to nothing and a batch travels in a quarter of the bytes.
"""

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from src.errors import UserError
from src.images import resize_input


class TrainPreset:
    """Resize to img_size² (aspect not kept), random crop of crop_size², horizontal flip.

    The published recipe (320 and 288), with the horizontal flip that later work uses in place of
    the vertical one. Mask values stay what they are (nearest neighbour).

    Raises:
        UserError: the crop is larger than the picture.
    """

    def __init__(self, img_size: int, crop_size: int) -> None:
        if not 0 < crop_size <= img_size:
            raise UserError(f"--crop-size {crop_size} must be in 1 … --img-size {img_size}")
        self.joint = v2.Compose(
            [
                v2.Resize((img_size, img_size), antialias=True),
                v2.RandomCrop(crop_size),
                v2.RandomHorizontalFlip(0.5),
            ]
        )

    def __call__(self, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        picture, mask = self.joint(tv_tensors.Image(picture), tv_tensors.Mask(mask))
        return picture.as_subclass(Tensor), mask.as_subclass(Tensor)


class EvalPreset:
    """The picture as the predictor sees it, the mask at its own size, as maps are scored there."""

    def __init__(self, img_size: int) -> None:
        self.img_size = img_size

    def __call__(self, picture: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return resize_input(picture, self.img_size), mask
