"""Peak memory of predict.py: a large image in each mode, and a folder of small ones.

    python -m benchmarks.scripts.memory                    # 100 megapixels, the weights in weights/
    python -m benchmarks.scripts.memory --only cutout --megapixels 48
    python -m benchmarks.scripts.memory --only folder --rembg rembg/bin/rembg  # against rembg

Each case runs in its own process, start-up included; the system reports its peak resident size. The
image is generated, or enlarged from --picture.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.predict_folder import measure, rembg_command
from train_utils import cli

# In a separate process: on Linux, a new process inherits its parent's peak size.
DRAW = """
import sys
import numpy as np
from PIL import Image
folder, megapixels, picture = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
y, x = np.mgrid[:300, :400]
inside = np.hypot(y - 160, (x - 190) * (1 + y / 900)) < 40 + 6 * np.sin(np.arctan2(y - 160, x - 190) * 9)
drawn = np.where(inside[..., None], (200, 60, 40), np.stack([90 + y / 9, 130 + x / 9, 150 - y / 9], -1))
small = Image.open(picture[0]).convert("RGB") if picture else Image.fromarray(drawn.astype(np.uint8))
small.resize((400, 300)).save(f"{folder}/small.jpg")
scale = (megapixels * 1e6 / small.width / small.height) ** 0.5
size = [round(n * scale) for n in small.size]
large, random = small.resize(size, Image.Resampling.BICUBIC), np.random.default_rng(0)
for top in range(0, size[1], 512):  # noise, as of a camera, so that files are as large as a photo's
    strip = np.asarray(large.crop((0, top, size[0], min(size[1], top + 512))))
    noise = random.integers(0, 6, strip.shape[:2], np.uint8)[..., None]
    large.paste(Image.fromarray(np.where(strip > 249, strip, strip + noise)), (0, top))
large.save(f"{folder}/rgb.jpg", quality=90)
large.convert("L").convert("I;16").point(lambda level: level * 257).save(f"{folder}/grey16.png", compress_level=1)
large.putalpha(Image.radial_gradient("L").resize(size).point(lambda level: max(0, 240 - level)))
large.save(f"{folder}/rgba.png", compress_level=1)
"""  # noqa: E501

FLAGS = {
    "mask": "",
    "mask, --refine": "--refine",
    "mask, --detail 4": "--detail 4",
    "mask, --preset rembg": "--preset rembg",
    "binary": "--mode binary",
    "overlay": "--mode overlay",
    "cutout": "--mode cutout",
    "cutout, --refine --crop": "--mode cutout --refine --crop --margin 5%",
    "green": "--mode background --background green",
    "green, --refine --detail 4": "--mode background --background green --refine --detail 4",
    "blur": "--mode background --background blur",
    "picture behind": "--mode background --background small.jpg",
}
CASES = [
    *(("rgb.jpg", name, ".png") for name in FLAGS),
    *(("rgb.jpg", "overlay", suffix) for suffix in (".jpg", ".tiff", ".webp", ".avif")),
    *(("rgb.jpg", "cutout", suffix) for suffix in (".tiff", ".webp", ".avif")),
    *(("rgba.png", name, ".png") for name in FLAGS),
    *(("grey16.png", name, ".png") for name in ("mask", "overlay", "cutout", "blur")),
]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Parse the flags, draw the images, run the cases one by one, print the table."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    cli.add_weights_flags(parser)
    add("--megapixels", type=cli.positive, default=100, metavar="N", help="of the large image")
    add("--picture", type=Path, metavar="FILE", help="instead of a generated image")
    add("--only", default="", metavar="TEXT", help="only cases whose row has this text")
    add("--count", type=cli.positive, default=100, help="images in the folder")
    add("--rembg", type=Path, metavar="FILE", help="rembg command, for the folder")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    """Run the cases and print a row for each."""
    draw = [sys.executable, "-c", DRAW, folder, args.megapixels, *filter(None, [args.picture])]
    subprocess.run([str(part) for part in draw], check=True)
    script = [sys.executable, "predict.py", "--weights", args.weights]
    script += ["--img-size", args.img_size] if args.img_size else []
    print(f"{args.megapixels} megapixels, {os.cpu_count()} cores")
    print("| image | mode | result | memory, MB | s |\n|---|---|---|---:|---:|")
    for source, name, suffix in CASES:
        if args.only in f"{source} {name} {suffix}":
            flags = FLAGS[name].replace("small.jpg", f"{folder}/small.jpg").split()
            command = [*script, folder / source, *flags, "--output", folder / f"out{suffix}"]
            show(source, name, suffix, command)
    if args.only not in "folder":
        return
    (folder / "in").mkdir()
    for number in range(args.count):
        (folder / "in" / f"{number}.jpg").symlink_to(folder / "small.jpg")
    place = folder / "in", folder / "out"
    show(
        f"{args.count} × .12 megapixels", "mask", ".png", [*script, place[0], "--output", place[1]]
    )
    if args.rembg:
        theirs, env = rembg_command(args.rembg, args.weights, folder)
        show("the same", "rembg", ".png", [*theirs, *place], env)


def show(
    source: str, name: str, suffix: str, command: list[object], env: dict[str, str] | None = None
) -> None:
    """Run a case and print its row."""
    took = measure(command, env)
    print(f"| {source} | {name} | {suffix} | {took.memory:.0f} | {took.wall:.0f} |", flush=True)


if __name__ == "__main__":
    cli.run(main)
