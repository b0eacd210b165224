"""Draw the README's first figure: scikit-image's cat, astronaut, cup and rocket, and their maps.

    python -m benchmarks.masks.first_pictures --weights u2netp.pth --figure docs/pictures/first.png

A row of images, a row of the shipped weights' maps, and a row of those of --weights. Needs
scikit-image, whose images are in the public domain or CC0.
"""

import numpy as np
from PIL import Image, ImageOps
from skimage import data

from src import Predictor
from src.weights.load import SHIPPED
from train_utils import cli

NAMES = ("chelsea", "astronaut", "coffee", "rocket")
HEIGHT, GAP = 200, 8


def main(argv: list[str] | None = None) -> None:
    """Parse the flags and draw."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    figure = {"type": cli.file_named(".png"), "required": True, "metavar": "PNG"}
    parser.add_argument("--figure", **figure, help="the file to draw")
    args = parser.parse_args(argv)
    pictures = [Image.fromarray(np.asarray(getattr(data, name)())) for name in NAMES]
    rows = [pictures]
    for weights in dict.fromkeys((SHIPPED, args.weights)):
        predict = Predictor(weights, args.img_size)
        rows.append([predict(picture).convert("RGB") for picture in pictures])
    sheet = np.vstack([np.hstack([tile(picture) for picture in row]) for row in rows])
    Image.fromarray(sheet[:-GAP, :-GAP]).quantize(256).save(args.figure, optimize=True)


def tile(picture: Image.Image) -> np.ndarray:
    """H×W×3, of the sheet's height, with a white gap on the right and below."""
    small = ImageOps.contain(picture, (10 * HEIGHT, HEIGHT))
    return np.asarray(ImageOps.expand(small, (0, 0, GAP, GAP), "white"))


if __name__ == "__main__":
    cli.run(main)
