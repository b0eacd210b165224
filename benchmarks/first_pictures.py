"""Draw the README's first pictures: scikit-image's cat, astronaut, cup and rocket, and their maps.

    python -m benchmarks.first_pictures --weights u2netp.pth --figure docs/pictures/first.png

A row of pictures, one of the shipped weights' maps, and one of those of --weights. Needs
scikit-image, whose pictures are free of rights.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from skimage import data

from src import Predictor
from src.weights import SHIPPED
from train_utils import cli

NAMES = ("chelsea", "astronaut", "coffee", "rocket")
HEIGHT, GAP = 200, 8


def main(argv: list[str] | None = None) -> None:
    """Parse and draw."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    figure = {"type": cli.file_named(".png"), "required": True, "metavar": "PNG"}
    parser.add_argument("--figure", **figure, help="the file to draw")
    args = parser.parse_args(argv)
    pictures = [Image.fromarray(np.asarray(getattr(data, name)())) for name in NAMES]
    rows = [pictures]
    for weights in dict.fromkeys((SHIPPED, args.weights)):
        predict = Predictor(weights)
        rows.append([predict(picture).convert("RGB") for picture in pictures])
    save_sheet(rows, args.figure)


def save_sheet(rows: list[list[Image.Image]], path: Path) -> None:
    """Rows of pictures, all of one height, in a file of few colours."""
    rows = [[ImageOps.contain(picture, (10 * HEIGHT, HEIGHT)) for picture in row] for row in rows]
    width = sum(picture.width + GAP for picture in rows[0]) - GAP
    sheet = Image.new("RGB", (width, (HEIGHT + GAP) * len(rows) - GAP), "white")
    for i, row in enumerate(rows):
        x = 0
        for picture in row:
            sheet.paste(picture, (x, i * (HEIGHT + GAP)))
            x += picture.width + GAP
    sheet.quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    cli.run(main)
