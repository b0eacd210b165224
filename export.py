"""Write a network for other runtimes, checked against the network itself.

    python export.py --weights runs/u2net_lite-1/best.pt --output lite.onnx
    python export.py --weights u2net.pth --format pt2 --output u2net.pt2

The file takes a float32 batch N x 3 x H x W, divided by 255 and normalised by the mean and std that
it names in its metadata; batch, height and width are free. Its first output is the fused map as
probabilities, N x 1 x H x W. Before it is kept, it has to load and to give what the network gives,
at several batches and sizes.
"""

import argparse
from pathlib import Path

from src import UserError, load_model
from src.export import export_onnx, export_pt2
from train_utils import cli

FORMATS = {"onnx": ".onnx", "pt2": ".pt2"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of export.py."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    add = parser.add_argument
    add("--format", choices=tuple(FORMATS), help="onnx or pt2 (default: by the suffix of --output)")
    add("--output", type=cli.file_named(*FORMATS.values()), required=True, metavar="F", help="file")
    add("--sides", action="store_true", help="give the side maps too, after the fused one")
    add("--half", action="store_true", help="onnx: weights and arithmetic in float16")
    args = parser.parse_args(argv)
    by_suffix = next(name for name, suffix in FORMATS.items() if suffix == args.output.suffix)
    if args.format not in (None, by_suffix):
        parser.error(f"--format {args.format} is written to a {FORMATS[args.format]} file")
    args.format = by_suffix
    if args.half and args.format != "onnx":
        parser.error("--half goes with --format onnx")
    return args


def main(argv: list[str] | None = None) -> int:
    """Parse, export, say what came out."""
    args = parse_args(argv)
    model = load_model(args.weights)
    model.img_size = args.img_size or model.img_size
    if model.config.in_ch != 3:
        raise UserError(f"{args.weights}: takes {model.config.in_ch} channels, not 3")
    if args.format == "onnx":
        worst = export_onnx(model, args.output, args.sides, args.half)
    else:
        worst = export_pt2(model, args.output, args.sides)
    print(f"{args.weights}: {model.origin}")
    print(f"{args.output}: {size(args.output)}, at most {worst:.1g} off the network")
    return 0


def size(path: Path) -> str:
    """Of a file, for people."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


if __name__ == "__main__":
    cli.run(main)
