"""Draw a salient object data set in DUTS layout: nothing to download, reproducible by a seed.

An image shows one or two crisp, shaded, textured objects on a textured, cluttered background.
Palettes and places are random, so that neither colour, brightness nor position gives them away.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

VERSION = 1  # raise it when the drawing changes, so that sets on disk are drawn again
SPLITS = {"train": (0, "DUTS-TR"), "test": (1, "DUTS-TE")}  # name -> (id in the seed, folder)
MIN_SIZE = 32  # px; smaller images leave clutter and objects alike
OVERSAMPLING = 3  # masks are drawn this many times larger, then averaged: smooth edges
OBJECT_AREA = (0.06, 0.40)  # least and greatest share of the image that one object covers
LEAST_CONTRAST = 85  # least distance of palette middles, in RGB units of 0..255
Array = np.ndarray


def _noise(rng: Generator, shape: tuple[int, int], cell: float) -> Array:
    """Smooth random field, HxW float32 in 0..1, that changes over about `cell` px."""
    grid_shape = [max(2, round(side / cell) + 1) for side in shape]
    grid = Image.fromarray(rng.random(grid_shape, dtype=np.float32))
    return np.asarray(grid.resize(shape[::-1], Image.Resampling.BICUBIC)).clip(0, 1)


def _pattern(rng: Generator, shape: tuple[int, int]) -> Array:
    """Random texture, HxW float in 0..1."""
    kind, side = rng.choice(["cloud", "stripes", "checks", "dots", "speckle"]), min(shape)
    if kind == "cloud":
        octaves = [_noise(rng, shape, side / 8 / 2**k) / 1.6**k for k in range(3)]
        wave = 3 * (np.mean(octaves, axis=0) / np.mean(octaves) - 1)
    elif kind == "speckle":
        wave = 2 * _noise(rng, shape, side * rng.uniform(0.012, 0.03)) - 1
    else:
        y, x = np.mgrid[: shape[0], : shape[1]]
        angle, period = rng.uniform(0, math.pi), side * rng.uniform(0.05, 0.13)
        warp = period * rng.uniform(0, 2.5) * _noise(rng, shape, side / 3)
        u = np.sin((x * math.cos(angle) + y * math.sin(angle) + warp) * math.tau / period)
        v = np.sin((y * math.cos(angle) - x * math.sin(angle) + warp) * math.tau / period)
        wave = {"stripes": u, "checks": 1.5 * u * v, "dots": u + v - 0.7}[kind]
    return (0.5 + rng.uniform(0.4, 1.5) * wave).clip(0, 1)


def _palette(rng: Generator, centre: Array, spread: float = 22) -> Array:
    """Three related colours around `centre`, 3x3 float in 0..255; they differ most in lightness."""
    offsets = rng.normal(0, spread, (3, 1)) + rng.normal(0, spread / 2, (3, 3))
    return (centre + offsets - offsets.mean(axis=0)).clip(0, 255)


def _texture(rng: Generator, shape: tuple[int, int], palette: Array) -> Array:
    """Random pattern in the colours of `palette`, HxWx3 float in 0..255."""
    pattern, stops = _pattern(rng, shape), np.linspace(0, 1, len(palette))
    return np.stack([np.interp(pattern, stops, channel) for channel in palette.T], axis=-1)


def _new_colour(rng: Generator, taken: list[Array]) -> Array:
    """Random, rather greyish RGB colour, 3 floats in 30..225, not too near the `taken` ones."""
    while True:
        colour = (rng.uniform(60, 195) + rng.normal(0, 32, 3)).clip(30, 225)
        if all(np.linalg.norm(colour - other) > LEAST_CONTRAST for other in taken):
            return colour


def _outline(rng: Generator) -> Array:
    """Random closed outline about the origin, Nx2 float, radius about 1."""
    kind = rng.choice(["blob", "ellipse", "polygon", "star"])
    corners = {"polygon": rng.integers(3, 7), "star": 2 * rng.integers(4, 8)}.get(kind, 72)
    angle, radius = np.arange(corners) * math.tau / corners, np.ones(corners)
    if kind == "blob":
        for k in range(2, 6):
            radius += rng.normal(0, 0.36 / k) * np.cos(k * angle + rng.uniform(0, math.tau))
    elif kind == "star":
        radius[::2] = rng.uniform(0.4, 0.65)
    elif kind == "polygon":
        angle += rng.uniform(-0.3, 0.3, corners) * math.tau / corners
    points = radius.clip(0.35)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points[:, 0] *= rng.uniform(0.5, 1)
    turn = rng.uniform(0, math.tau)
    return points @ [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]


def _limb(rng: Generator, reach: float) -> Array:
    """Bent path from the origin outwards, 12x2 float, `reach` long."""
    along = np.linspace(0, 1, 12)
    angle = rng.uniform(0, math.tau) + rng.uniform(-1.2, 1.2) * along
    return reach * along[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _draw_object(rng: Generator, shape: tuple[int, int]) -> Array:
    """Cover of one random object, HxW float32: 1 inside, 0 outside, between them on its edge."""
    big = np.array(shape[::-1]) * OVERSAMPLING
    while True:
        canvas = Image.new("L", tuple(big.tolist()))
        draw = ImageDraw.Draw(canvas)
        radius = min(big) * rng.uniform(0.17, 0.42)
        centre, body = big * rng.uniform(0.08, 0.92, 2), _outline(rng)
        if rng.random() < 0.3:
            for _ in range(rng.integers(2, 6)):
                path = centre + radius * _limb(rng, rng.uniform(1.2, 1.8))
                width = max(2 * OVERSAMPLING, round(radius * rng.uniform(0.1, 0.2)))
                draw.line([tuple(p) for p in path.tolist()], 255, width, joint="curve")
        draw.polygon((centre + radius * body).ravel().tolist(), fill=255)
        if rng.random() < 0.2:
            hole = centre + radius * (rng.uniform(0.3, 0.45) * body + rng.uniform(-0.08, 0.08, 2))
            draw.polygon(hole.ravel().tolist(), fill=0)
        cover = np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / 255
        if OBJECT_AREA[0] <= cover.mean() <= OBJECT_AREA[1]:
            return cover


def _background(rng: Generator, shape: tuple[int, int], colours: list[Array]) -> Array:
    """Two textures that melt into each other and soft blotches, HxWx3 float in 0..255.

    `colours` are the middles of two background palettes and of the objects' one. Half of the
    blotches take the latter, so that the objects' colours occur outside the objects too.
    """
    side = min(shape)
    first, second = (_texture(rng, shape, _palette(rng, colour)) for colour in colours[:2])
    share = (3 * (_noise(rng, shape, side / 2) - 0.5) + 0.5).clip(0, 1)[..., None]
    image = first + share * (second - first)
    for k in range(rng.integers(2, 5)):
        spot = (3 * _noise(rng, shape, side / 2.5) - 1.7).clip(0, 1)[..., None]
        colour = _palette(rng, colours[2 if k % 2 else rng.integers(2)])[0]
        image += rng.uniform(0.5, 0.9) * spot * (colour - image)
    return image


def _add_clutter(rng: Generator, image: Array, colours: list[Array]) -> Array:
    """Scatter small shapes, thin lines and hollow outlines over `image`, HxWx3 in 0..255."""
    canvas = Image.fromarray(image.clip(0, 255).astype(np.uint8))
    canvas = canvas.resize([2 * length for length in canvas.size], Image.Resampling.BILINEAR)
    draw, side = ImageDraw.Draw(canvas), min(canvas.size)
    width = max(2, side // 90)
    for _ in range(rng.integers(12, 42)):
        ink = tuple(_palette(rng, colours[rng.integers(3)])[0].astype(int).tolist())
        centre, kind = rng.uniform(0, 1, 2) * canvas.size, rng.random()
        if kind < 0.2:
            path = centre + side * _limb(rng, rng.uniform(0.1, 0.8))
            draw.line(path.ravel().tolist(), ink, width)
        else:
            hollow = kind > 0.85
            reach = rng.uniform(0.06, 0.25) if hollow else rng.uniform(0.01, 0.035)
            points = centre + side * reach * _outline(rng)
            draw.polygon(points.ravel().tolist(), None if hollow else ink, ink, width)
    return np.asarray(canvas.reduce(2), dtype=np.float64)


def _add_object(rng: Generator, image: Array, cover: Array, colour: Array) -> Array:
    """Lay one shaded, textured object with a soft shadow over `image`, HxWx3 in 0..255."""
    side = min(cover.shape)
    mask = Image.fromarray((cover * 255).astype(np.uint8))
    soft = np.asarray(mask.filter(ImageFilter.GaussianBlur(side * 0.04)), dtype=np.float32) / 255
    light = rng.uniform(0, math.tau)
    slope_y, slope_x = np.gradient(soft, 1 / side)
    relief = slope_x * math.cos(light) + slope_y * math.sin(light)
    surface = _texture(rng, cover.shape, _palette(rng, colour, spread=36))
    surface *= (1 + rng.uniform(0.02, 0.05) * relief)[..., None]
    image = image * (1 - rng.uniform(0, 0.5) * soft)[..., None]  # a soft shadow
    return image + cover[..., None] * (surface - image)


def draw_scene(rng: Generator, size: int) -> tuple[Array, Array]:
    """Draw one image and its mask.

    `size` is the longer side in px, the shorter one is 0.7 to 1 of it. Returns the image, HxWx3
    uint8 RGB, and the mask, HxW uint8: 255 on the salient objects, 0 elsewhere.
    """
    height, width = (size, round(size * rng.uniform(0.7, 1)))[:: rng.choice([-1, 1])]
    shape = height, width
    colours: list[Array] = []
    for _ in range(3):
        colours.append(_new_colour(rng, colours))
    image = _add_clutter(rng, _background(rng, shape, colours), colours)
    covers = [_draw_object(rng, shape) for _ in range(1 if rng.random() < 0.75 else 2)]
    for cover in covers:
        image = _add_object(rng, image, cover, colours[2])
    image = image * (0.65 + 0.7 * _noise(rng, shape, size * 0.8)[..., None])
    image += rng.normal(0, rng.uniform(2, 9), image.shape)
    mask = np.where(np.max(covers, axis=0) >= 0.5, 255, 0)
    return image.clip(0, 255).astype(np.uint8), mask.astype(np.uint8)


def _pair_paths(output: Path, split: str, index: int | str) -> tuple[Path, Path]:
    """The paths of image `index` of a split and of its mask."""
    folder, stem = SPLITS[split][1], f"synthetic-{split}-{index:0>5}"
    base = str(output / folder / folder)
    return Path(f"{base}-Image", f"{stem}.jpg"), Path(f"{base}-Mask", f"{stem}.png")


def write_dataset(output: Path, train: int, test: int, size: int, seed: int) -> bool:
    """Write `train` and `test` pairs below `output`, in DUTS-TR and DUTS-TE.

    `size` is the longer side of the images in px. Image i of a split depends on `seed`,
    `size`, the split and i alone. Returns False if the set is there already; a set that is not
    complete, or has other parameters, is drawn again. Only files of this module's naming are
    ever replaced or removed. Raises OSError if a folder or file cannot be written.
    """
    counts = {"train": train, "test": test}
    text = json.dumps({"version": VERSION, **counts, "size": size, "seed": seed}) + "\n"
    manifest = output / "synthetic.json"
    jobs = [(split, index) for split, count in counts.items() for index in range(count)]
    drawn = all(path.is_file() for job in jobs for path in _pair_paths(output, *job))
    if drawn and manifest.is_file() and manifest.read_bytes() == text.encode():
        return False
    # A set without its manifest counts as unfinished: it goes first and comes back last.
    manifest.unlink(missing_ok=True)
    for split in SPLITS:
        for pattern in _pair_paths(output, split, "?????"):
            pattern.parent.mkdir(parents=True, exist_ok=True)
            for stale in pattern.parent.glob(pattern.name):
                stale.unlink()
    for split, index in tqdm(jobs, "drawing", disable=None):
        scene = draw_scene(np.random.default_rng([seed, SPLITS[split][0], index]), size)
        for array, path in zip(scene, _pair_paths(output, split, index), strict=True):
            Image.fromarray(array).save(path, quality=90)
    manifest.write_bytes(text.encode())
    return True


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 if the set cannot be written."""
    parser = argparse.ArgumentParser(description="Draw a salient object data set in DUTS layout.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--train", type=int, default=600, help="training pairs, from 1")
    parser.add_argument("--test", type=int, default=120, help="test pairs, from 1")
    parser.add_argument("--size", type=int, default=160, help=f"longer side, from {MIN_SIZE} px")
    parser.add_argument("--seed", type=int, default=0, help="from 0")
    args = parser.parse_args(argv)
    if min(args.train, args.test) < 1 or args.size < MIN_SIZE or args.seed < 0:
        parser.error("a number is too small, see --help")
    try:
        written = write_dataset(**vars(args))
    except OSError as error:
        print(f"synthetic: cannot write {args.output}: {error}", file=sys.stderr)
        return 2
    state = "wrote" if written else "already complete:"
    print(f"{state} {args.train} training and {args.test} test pairs in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
