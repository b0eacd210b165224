"""Draw annotations as masks: COCO and LabelMe json, YOLO txt, and class masks in colours, to PNG.

    python draw_masks.py --annotations instances.json --output masks
    python draw_masks.py --data-path mine --output mine/masks
    python draw_masks.py --data-path streets --classes road car person --output streets/indices
    python draw_masks.py --data-path voc --num-classes 21 --class-colours colours.txt --output idx

Each mask has its image's name, and the size that its annotation was made for. Objects are white on
black, whatever their class; with --classes or --num-classes masks hold class indices, with a
palette for viewing. Training and scoring need no such files: they draw the same masks as they read
annotations.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from my_dataset import SPLITS, Pair, find_pairs
from src import UserError
from src.files import atomic_path, check_outputs, real_path
from src.pictures.classes import coloured
from src.words import counted
from train_utils import cli
from train_utils.data.masks import count_classes, mask_reader


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of draw_masks.py; exits with status 2 if they conflict."""
    parser = cli.make_parser(__doc__)
    cli.add_data_flags(parser)
    classes = parser.add_argument_group("classes")
    text = "masks hold class indices below K (default: as many as --classes, else an object's mask)"
    classes.add_argument("--num-classes", type=cli.class_count, metavar="K", help=text)
    text = "the value of classes called void or ignore"
    classes.add_argument("--ignore-index", type=cli.class_index, metavar="I", help=text)
    parser.add_argument("--split", choices=SPLITS, default="all", help="which images")
    text = "folder to write to, created if missing"
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help=text)
    text = "overwrite masks that exist already"
    parser.add_argument("--overwrite", action="store_true", help=text)
    args = parser.parse_args(argv)
    for name in ("data_path", "annotations"):
        values = getattr(args, name) or [None]
        if len(values) > 1:
            parser.error(f"{cli.flag(name)}: one data set at a time")
        setattr(args, name, values[0])
    if args.num_classes is None and args.classes:
        args.num_classes = count_classes(args.classes, args.ignore_index)
    if args.ignore_index is not None and args.num_classes is None:
        parser.error("--ignore-index goes with --num-classes or --classes")
    return args


def draw(pair: Pair, classes: bool, white: int) -> Image.Image:
    """A mask as it is written: indices with a palette, or grey levels, with ``white`` as 255."""
    mask = pair.load_mask()
    return coloured(mask) if classes else Image.fromarray(mask * np.uint8(255 // white))


def main(argv: list[str] | None = None) -> int:
    """Draw all masks; returns the exit status."""
    args = parse_args(argv)
    named = args.classes or (), args.class_colours
    kind = args.masks, args.mask_threshold
    read = mask_reader(args.num_classes, args.ignore_index, *kind, *named)
    folders = args.image_dir, args.mask_dir
    found = find_pairs(
        args.data_path, args.split, *folders, args.skip_invalid, read, args.annotations
    )
    print(*found.notes, sep="\n", end="\n" if found.notes else "")
    outputs = [args.output / f"{pair.name}.png" for pair in found.pairs]
    images = {real_path(pair.image.parent) for pair in found.pairs}
    if shared := [path.parent for path in outputs if real_path(path.parent) in images]:
        raise UserError("is the images' own folder; choose another", "output", shared[0])
    there = [path for path in outputs if path.exists()]
    if there and not args.overwrite:
        text = f"{len(there)} of the masks exist already, such as {there[0]}"
        advice = "name another folder, or pass {overwrite}"
        raise UserError(text, "output", args.output, advice)
    check_outputs({"output": outputs}, [f for pair in found.pairs for f in (pair.image, pair.mask)])
    white = 255 if read.kind == "soft" else 1
    for pair, output in zip(found.pairs, outputs, strict=True):
        with atomic_path(output) as temporary:
            draw(pair, args.num_classes is not None, white).save(temporary, "PNG")
    print(f"{args.output}: {counted(len(outputs), 'mask')}")
    return 0


if __name__ == "__main__":
    cli.run(main)
