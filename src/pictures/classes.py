"""Maps of classes: the class of each pixel, and images that show it in colour."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .images import STRIP


def most_probable(probabilities: Tensor) -> Tensor:
    """The class of each pixel.

    Args:
        probabilities: C×H×W in [0, 1].

    Returns:
        H×W uint8, the index of the highest; for a single map, 1 where it is at least 0.5.

    Raises:
        UserError: there are more than 256 classes.

    Example:
        >>> most_probable(torch.tensor([[[0.2, 0.7]]]))
        tensor([[0, 1]], dtype=torch.uint8)
    """
    if len(probabilities) > len(COLOURS):
        raise UserError(f"{len(probabilities)} classes; 8 bits, which masks have, hold 256")
    if len(probabilities) == 1:
        return (probabilities[0] >= 0.5).to(torch.uint8)
    rows = probabilities.split(max(1, STRIP // max(1, probabilities.shape[2])), dim=1)
    return torch.cat([strip.argmax(0).to(torch.uint8) for strip in rows])


def coloured(maps: Tensor | np.ndarray) -> Image.Image:
    """Classes as a palette image: shown in the colours of PASCAL VOC, read as indices by programs.

    Args:
        maps: probabilities C×H×W in [0, 1], whose argmax is taken, or indices H×W uint8.

    Returns:
        An image of mode P, of the maps' size.

    Example:
        >>> coloured(np.array([[0, 1]], np.uint8)).convert("RGB").getpixel((1, 0))
        (128, 0, 0)
    """
    if maps.ndim == 3:
        maps = most_probable(torch.as_tensor(maps))
    image = Image.fromarray(np.asarray(maps.cpu() if isinstance(maps, Tensor) else maps))
    image.putpalette(COLOURS.tobytes())
    return image


def _voc_colours() -> np.ndarray:
    """256×3: an index's bits, three at a time, become the highest bits of red, green and blue."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)  # the highest first
    colours = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for place in range(3):  # the lowest triple of bits is the most visible
            bit = 3 * place + channel
            if bit < 8:
                colours[:, channel] |= bits[:, 7 - bit] << (7 - place)
    return colours


COLOURS = _voc_colours()
"""256×3 uint8, the colour of each class."""
