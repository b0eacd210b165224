"""Colours and edges of cut-outs against ground truth, compared with other methods.

    python -m benchmarks.masks.cutouts
    python -m benchmarks.masks.cutouts --weights u2netp.pth --figure docs/pictures/refine.png

Drawn strands of known alpha and colour are placed on another image (all from scikit-image, public
domain or CC0). Colours are estimated from the true alpha, and from one as blurred as a network's;
edges from a 320² map, blurred by one of its pixels. Needs scikit-image, OpenCV and pymatting:
pip install pymatting
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw
from skimage import data

from src import Predictor
from src.pictures.matting import foreground, refine
from src.pictures.render import Style, render
from train_utils import cli

with suppress(ModuleNotFoundError):  # reported by main, so that --help works without it
    from pymatting import estimate_alpha_cf, estimate_foreground_cf, estimate_foreground_ml

SIZE = (768, 576)
PAIRS = (
    ("coffee", "rocket"),
    ("chelsea", "coffee"),
    ("astronaut", "rocket"),
    ("rocket", "chelsea"),
)
SHOWN = {  # the part of each shown: left, top, right, bottom
    "chelsea": (0, 120, 200, 300),
    "astronaut": (130, 0, 330, 180),
    "rocket": (260, 100, 400, 427),
}


def main(argv: list[str] | None = None) -> None:
    """Parse the flags, then measure or draw."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    parser.add_argument("--figure", type=cli.file_named(".png"), metavar="PNG", help=(
        "draw before and after for scikit-image's cat, astronaut and rocket, instead of measuring"
    ))  # fmt: skip
    args = parser.parse_args(argv)
    cli.require_packages("pymatting")
    if args.figure:
        draw(args, args.figure)
    else:
        measure()


def measure() -> None:
    """Measure and print both tables."""
    colours, edges = defaultdict(list), defaultdict(list)
    for seed, (near, behind) in enumerate(PAIRS):
        alpha = strands(seed)
        texture, ground = picture(near), picture(behind)
        seen = np.round(255 * (alpha[..., None] * texture + (1 - alpha[..., None]) * ground)) / 255
        for known, given in (("true", alpha), ("blurred", cv2.GaussianBlur(alpha, (0, 0), 2))):
            part = (given > 0) & (given < 1)
            for name, way in COLOURS.items():
                found, took = timed(way, seen, given)
                error = np.abs(given[..., None] * (found - texture))[part].mean() * 255
                colours[name, known].append((error, took))
        coarse = cv2.resize(alpha, (320, 320), interpolation=cv2.INTER_AREA)
        coarse = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 1), SIZE)
        for name, way in EDGES.items():
            found, took = timed(way, seen, coarse)
            edges[name, ""].append((np.abs(found - alpha).mean() * 255, took))
    for title, rows in (("colours", colours), ("edges", edges)):
        print(f"\n| {title} | error, of 255 | s |\n|---|---:|---:|")
        for (name, known), values in rows.items():
            error, took = np.mean(values, 0)
            print(f"| {name}{known and f', {known} alpha'} | {error:.2f} | {took:.2f} |")


def timed(way: Callable, seen: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, float]:
    """The result and the CPU seconds, after a call that compiles it."""
    way(seen[:64, :64], alpha[:64, :64])
    began = time.process_time()
    return way(seen, alpha), time.process_time() - began


def picture(name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """One of scikit-image's images, in [0, 1]."""
    return cv2.resize(getattr(data, name)(), size, interpolation=cv2.INTER_AREA) / 255


def strands(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Alpha of an oval with hair, drawn at four times the size and reduced."""
    rng = np.random.default_rng(seed)
    width, height = (4 * n for n in size)
    image = Image.new("L", (width, height))
    draw = ImageDraw.Draw(image)
    middle, radii = np.array([width, height]) / 2, np.array([width / 5, height / 4])
    draw.ellipse([*(middle - radii), *(middle + radii)], fill=255)
    for angle in rng.uniform(0, 2 * np.pi, 160):
        way = np.array([np.cos(angle), np.sin(angle)])
        points, step = [middle + radii * way], 40 * way
        for _ in range(8):
            step = step + rng.normal(0, 10, 2)
            points.append(points[-1] + step)
        draw.line([tuple(p) for p in points], fill=255, width=int(rng.integers(1, 8)))
    return np.array(image.resize(size, Image.Resampling.BOX), np.float32) / 255


def guided(seen: np.ndarray, alpha: np.ndarray, radius: int = 8, eps: float = 1e-4) -> np.ndarray:
    """The guided filter with a grey guide (He et al. 2013, algorithm 1)."""
    guide = seen.mean(2)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (2 * radius + 1, 2 * radius + 1))

    slope = mean(guide * alpha) - mean(guide) * mean(alpha)
    slope /= mean(guide * guide) - mean(guide) ** 2 + eps
    return (mean(slope) * guide + mean(mean(alpha) - slope * mean(guide))).clip(0, 1)


def closed_form(seen: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pymatting's closed-form matting, with an unknown region where the map is unsure."""
    trimap = np.where(alpha > 0.97, 1.0, np.where(alpha < 0.03, 0.0, 0.5))
    return estimate_alpha_cf(seen, trimap) if {0, 1} <= set(np.unique(trimap)) else alpha


def _image(seen: np.ndarray) -> Image.Image:
    return Image.fromarray((seen * 255).round().astype(np.uint8))


COLOURS = {
    "the picture's own": lambda seen, alpha: seen,
    "pymatting, multi-level": lambda seen, alpha: estimate_foreground_ml(seen, alpha.astype(float)),
    "pymatting, closed form": lambda seen, alpha: estimate_foreground_cf(seen, alpha.astype(float)),
    "here": lambda seen, alpha: np.array(foreground(_image(seen), alpha)) / 255,
}
EDGES = {
    "the map": lambda seen, alpha: alpha,
    "guided filter": guided,
    "pymatting, closed form": closed_form,
    "here": lambda seen, alpha: refine(_image(seen), alpha),
}


def draw(args: argparse.Namespace, path: Path) -> None:
    """Rows of details: image, map, refined map; on green: colours kept, then both cut-outs."""
    predictor = Predictor(args.weights, args.img_size)
    rows = []
    for name, box in SHOWN.items():
        image = Image.fromarray(getattr(data, name)())
        saliency = predictor.map(image)
        refined = refine(image, saliency)
        leaky = image.copy()
        leaky.putalpha(render(image, saliency, Style()))
        green = Style("background", (48, 160, 48))
        tiles = [image, render(image, saliency, Style()), render(image, refined, Style())]
        tiles += [Image.alpha_composite(Image.new("RGBA", image.size, (48, 160, 48)), leaky)]
        tiles += [render(image, saliency, green), render(image, refined, green)]
        rows.append([tile.convert("RGB").crop(box).resize((240, 220)) for tile in tiles])
    sheet = Image.new("RGB", (242 * 6, 222 * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(tile, (242 * x, 222 * y))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


if __name__ == "__main__":
    cli.run(main)
