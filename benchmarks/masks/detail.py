"""Outlines of large images: --detail against plain tiles, pyramid blending and --refine.

    python -m benchmarks.masks.detail --weights u2netp.pth --data-path ECSSD --count 20

Images with sharp masks are made from a saliency data set: its objects pasted small onto another,
blurred image of 2400×1800, and its images enlarged five times, with large objects but no more
detail. The third kind is the hair of benchmarks/masks/cutouts.py, drawn at 3000×2250; on the first
of these, closed-form matting (pymatting) of the map is compared as well, which takes a minute and
4 GB (on others it did not converge in 10,000 steps). Tiles: 25, overlapping by half, each a third
of the image per side. Pyramid: the Laplacian bands of the map at three times the network's size,
near the outline of the map at its own size, blended as in InSPyReNet (Kim et al. 2022). Seconds are
CPU time of one thread, not counting the first map.
"""

import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import torch
from PIL import Image

from my_dataset import find_pairs
from src import Predictor
from src.inference.detail import look_closer
from src.pictures.matting import refine
from train_utils import cli
from train_utils.metrics.measures.structure import boundary_accuracy, relaxed_boundary_f

from .cutouts import PAIRS, closed_form, picture, strands

SIZE = (2400, 1800)
DRAWN = (3000, 2250)
Case = tuple[Image.Image, np.ndarray, np.ndarray]  # image, mask and first map
Way = Callable[[Predictor, Image.Image, np.ndarray], np.ndarray]


def main(argv: list[str] | None = None) -> None:
    """Parse the flags, measure, print a table for each kind."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    cli.add_data_flags(parser)
    parser.add_argument("--count", type=cli.positive, default=20, metavar="N", help="images")
    args = parser.parse_args(argv)
    cli.require_packages("pymatting")
    torch.set_num_threads(1)
    predictor = Predictor(args.weights, args.img_size)
    pairs = find_pairs((args.data_path or [None])[0], None, args.image_dir, args.mask_dir).pairs
    opened = [(Image.open(p.image).convert("RGB"), Image.open(p.mask).convert("L")) for p in pairs]
    chosen = range(0, len(opened), max(1, len(opened) // args.count))[: args.count]
    for make in (pasted, enlarged, drawn):
        indices = chosen if make != drawn else range(len(PAIRS))
        made = (make(opened, index) for index in indices)
        images = [(image, mask, predictor.map(image)) for image, mask in made]
        compare(make.__name__, WAYS, predictor, images)
    compare("drawn, first", WAYS | MATTING, predictor, images[:1])


def compare(name: str, ways: dict[str, Way], predictor: Predictor, images: list[Case]) -> None:
    """Print a table of means over the images."""
    print(f"\n| {name} | MAE | mBA | relaxF | s |\n|---|---:|---:|---:|---:|")
    for way, found in ways.items():
        values = np.mean(list(measure(predictor, found, images)), 0)
        print("| {} | {:.4f} | {:.3f} | {:.3f} | {:.2f} |".format(way, *values), flush=True)


def measure(predictor: Predictor, way: Way, images: list[Case]) -> Iterator[tuple[float, ...]]:
    """MAE, mBA, relaxed boundary F and seconds for each image."""
    for image, mask, first in images:
        began = time.process_time()
        found = way(predictor, image, first.copy())
        took = time.process_time() - began
        outline = boundary_accuracy(found, mask), relaxed_boundary_f(found, mask)
        yield float(np.abs(found - mask).mean()), *outline, took


def pasted(opened: list, index: int) -> tuple[Image.Image, np.ndarray]:
    """An object at 1.6 times its size, somewhere on another, blurred image."""
    rng = np.random.default_rng(index)
    image, mask = (part.resize([int(1.6 * n) for n in part.size]) for part in opened[index])
    behind = opened[(37 * index + 11) % len(opened)][0].resize(SIZE)
    canvas = Image.fromarray(cv2.GaussianBlur(np.array(behind), (0, 0), 25))
    place = tuple(int(rng.integers(0, n - m)) for n, m in zip(SIZE, mask.size, strict=True))
    canvas.paste(image, place, mask)
    whole = Image.new("L", SIZE)
    whole.paste(mask, place)
    return canvas, (np.array(whole) > 127).astype(np.uint8)


def enlarged(opened: list, index: int) -> tuple[Image.Image, np.ndarray]:
    """Image and mask at five times their size."""
    image, mask = (part.resize([5 * n for n in part.size]) for part in opened[index])
    return image, (np.array(mask) > 127).astype(np.uint8)


def drawn(opened: list, index: int) -> tuple[Image.Image, np.ndarray]:
    """An oval with hair from one of scikit-image's images, on another."""
    alpha = strands(index, DRAWN)
    near, behind = (picture(name, DRAWN) for name in PAIRS[index])
    seen = alpha[..., None] * near + (1 - alpha[..., None]) * behind
    image = Image.fromarray((255 * seen).round().astype(np.uint8))
    return image, (alpha > 0.5).astype(np.uint8)


def closer(count: int) -> Way:
    """--detail with this count."""
    return lambda predictor, image, first: look_closer(predictor, image, first, count)


def tiles(predictor: Predictor, image: Image.Image, first: np.ndarray) -> np.ndarray:
    """The mean of the maps of overlapping tiles, whatever they show."""
    total, count = np.zeros_like(first), np.zeros_like(first)
    width, height = (n // 3 + 1 for n in image.size)
    for y in np.linspace(0, image.height - height, 5).astype(int):
        for x in np.linspace(0, image.width - width, 5).astype(int):
            part = np.s_[y : y + height, x : x + width]
            total[part] += predictor.map(image.crop((x, y, x + width, y + height)))
            count[part] += 1
    return total / count


def pyramid(predictor: Predictor, image: Image.Image, first: np.ndarray) -> np.ndarray:
    """Add the bands of a larger map near the outline of the first."""
    height, width = predictor.size.fit(image.height, image.width)
    prepared = predictor.preset.prepare(image, (3 * height, 3 * width))
    band = predictor.maps(prepared[None])[0].cpu().numpy()
    bands = []
    for _ in range(2):
        small = cv2.pyrDown(band)
        bands.append(band - cv2.pyrUp(small, dstsize=band.shape[::-1]))
        band = small
    found = cv2.resize(first, band.shape[::-1], interpolation=cv2.INTER_AREA)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (31, 31))
    for band in bands[::-1]:
        found = cv2.pyrUp(found, dstsize=band.shape[::-1])
        near = cv2.morphologyEx((found > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, disc)
        found = found + band * cv2.GaussianBlur(near.astype(np.float32), (0, 0), 4)
    return cv2.resize(found.clip(0, 1), image.size)


def matte(image: Image.Image, found: np.ndarray) -> np.ndarray:
    """Closed-form matting where a map is unsure."""
    return closed_form(np.array(image, float) / 255, found).astype(np.float32)


WAYS: dict[str, Way] = {
    "the map": lambda predictor, image, first: first,
    "--detail 1": closer(1),
    "--detail 5": closer(5),
    "--detail 12": closer(12),
    "tiles": tiles,
    "pyramid": pyramid,
    "--refine": lambda predictor, image, first: refine(image, first),
    "--detail 5 --refine": lambda predictor, image, first: refine(
        image, look_closer(predictor, image, first, 5)
    ),
}
MATTING: dict[str, Way] = {
    "pymatting": lambda predictor, image, first: matte(image, first),
    "--detail 5, pymatting": lambda predictor, image, first: matte(
        image, look_closer(predictor, image, first, 5)
    ),
}


if __name__ == "__main__":
    cli.run(main)
