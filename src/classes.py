"""Maps of classes: which class a pixel is, and pictures that show it in colour."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import open_image, upright
from .predictor import Predictor


def most_probable(probabilities: Tensor) -> Tensor:
    """C×H×W in [0, 1] to the class of each pixel, H×W uint8; of one map: 1 where ≥ 0.5."""
    if len(probabilities) == 1:
        return (probabilities[0] >= 0.5).to(torch.uint8)
    return probabilities.argmax(0).to(torch.uint8)


def class_map(predictor: Predictor, picture: Image.Image | str | Path) -> np.ndarray:
    """The class of each pixel of a picture: H×W uint8, of the picture's own size."""
    image = upright(picture) if isinstance(picture, Image.Image) else open_image(picture)
    found = predictor.probabilities(predictor.prepare(image)[None])[0]
    return most_probable(predictor.resize(found, (image.height, image.width))).cpu().numpy()


def coloured(indices: np.ndarray) -> Image.Image:
    """Class indices H×W uint8 as a palette picture: shown in colour, and still indices to whoever
    reads them as a mask. The colours are those of PASCAL VOC.
    """
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
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
