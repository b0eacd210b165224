"""Maps of classes: which class a pixel is, and pictures that show it in colour."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def most_probable(probabilities: Tensor) -> Tensor:
    """C×H×W in [0, 1] to the class of each pixel, H×W uint8; of one map: 1 where ≥ 0.5."""
    if len(probabilities) == 1:
        return (probabilities[0] >= 0.5).to(torch.uint8)
    return probabilities.argmax(0).to(torch.uint8)


def coloured(found: Tensor | np.ndarray) -> Image.Image:
    """Classes as a palette picture: shown in colour, and still indices to whoever reads them as a
    mask. The colours are those of PASCAL VOC.

    Args:
        found: probabilities C×H×W in [0, 1], of which the highest counts, or indices H×W uint8.
    """
    if found.ndim == 3:
        found = most_probable(torch.as_tensor(found))
    indices = np.asarray(found.cpu() if isinstance(found, Tensor) else found)
    image = Image.fromarray(indices)
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
