"""Write a network for other runtimes, checked against the network itself.

    python export.py --weights runs/u2net_lite-1/best.pt --output lite.onnx
    python export.py --weights u2net.pth --output u2net.pt2                   # torch.export
    python export.py --weights u2net.pth --format aoti --output u2net.pt2     # for C++, see cpp/
    python export.py --weights u2net.pth --preset rembg --output ~/.rembg/u2net.onnx
    python export.py --weights u2net.pth --int8 --calibrate photos --output u2net_int8.onnx

The file takes a float32 batch N x 3 x H x W, divided by 255 and normalised by the mean and std that
it names in its metadata; batch, height and width are free. Its first output is the fused map as
probabilities, N x 1 x H x W. Before it is kept, it has to load and to give what the network gives,
at several batches and sizes. An AOTInductor package is compiled for this machine's processor and
for one picture of --img-size, 1 x 3 x PX x PX, which takes minutes and a C++ compiler. A file for
rembg is one for its u2net_custom session, which reads none outside its own folder, and shows a
network squares of 320 pixels, whatever it was trained at:

    rembg p -m u2net_custom -x '{"model_path": "~/.rembg/u2net.onnx"}' pictures cutouts

--int8 is for processors: a third of the size, and under OpenVINO (pip install openvino) faster than
in floats. predict.py and validation.py run such a file as it is. It takes pictures such as the
network will see, 160 of them if there are as many: their values give the ranges of its integers,
but for every fifth picture, which is kept to measure on. The mean absolute difference between its
maps there and those in float32 is printed; where it is more than --allow-loss, nothing is written.
"""

import argparse
import sys
from pathlib import Path

from torch import nn

from src import UserError, load_model
from src.export.int8 import LIMIT, export_int8
from src.export.onnx import export_aoti, export_onnx, export_pt2
from train_utils import cli

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}
REMBG_SIZE = 320


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of export.py."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    add = parser.add_argument
    add("--format", choices=tuple(FORMATS), help=(
        "onnx, pt2 (torch.export program) or aoti (AOTInductor package) (default: onnx or pt2, by "
        "the suffix of --output)"
    ))  # fmt: skip
    add("--output", type=cli.file_named(*FORMATS.values()), required=True, metavar="F", help="file")
    add("--sides", action="store_true", help="give the side maps too, after the fused one")
    add("--half", action="store_true", help="onnx: weights and arithmetic in float16")
    add("--int8", action="store_true", help="onnx: in 8-bit integers, with --calibrate")
    add("--calibrate", type=Path, metavar="DIR", help="int8: a folder of pictures, at least 5")
    add("--allow-loss", type=cli.fraction, default=LIMIT, metavar="X", help=(
        "int8: how far its maps may be from the network's, in the mean over pixels in 0 … 1"
    ))  # fmt: skip
    add("--preset", choices=("rembg",), help=(
        "rembg: onnx for its u2net_custom session; says if the network was trained at another size"
    ))  # fmt: skip
    args = parser.parse_args(argv)
    if args.output.resolve() == args.weights.resolve():
        parser.error("--output is --weights; name another file")
    suffix = args.output.suffix.lower()
    args.format = args.format or next(name for name in FORMATS if FORMATS[name] == suffix)
    if FORMATS[args.format] != suffix:
        parser.error(f"--format {args.format} is written to a {FORMATS[args.format]} file")
    if args.preset and (args.format != "onnx" or args.sides):
        parser.error("--preset rembg goes with --format onnx, without --sides")
    if args.half and args.format != "onnx":
        parser.error("--half goes with --format onnx")
    if args.int8 and (args.format != "onnx" or args.sides or args.half):
        parser.error("--int8 goes with --format onnx, without --sides and --half")
    if args.int8 != bool(args.calibrate):
        parser.error("--int8 and --calibrate DIR go together")
    return args


def main(argv: list[str] | None = None) -> int:
    """Parse, export, say what came out."""
    args = parse_args(argv)
    model = load_model(args.weights)
    model.img_size = args.img_size or model.img_size
    if model.config.in_ch != 3:
        raise UserError(f"{args.weights}: takes {model.config.in_ch} channels, not 3")
    print(f"{args.weights}: {model.origin}")
    if args.preset and model.config.out_ch != 1:
        raise UserError(f"--preset rembg: is for one map; {args.weights}: {model.origin}")
    if args.preset and model.img_size != REMBG_SIZE:
        print(f"trained at {model.img_size}², but rembg shows it {REMBG_SIZE}²: expect less of it")
    if args.int8:
        return write_int8(args, model)
    if args.format == "onnx":
        worst = export_onnx(model, args.output, args.sides, args.half)
    else:
        write = export_pt2 if args.format == "pt2" else export_aoti
        worst = write(model, args.output, args.sides)
    print(f"{args.output}: {size(args.output)}, at most {worst:.1g} off the network")
    return 0


def write_int8(args: argparse.Namespace, model: nn.Module) -> int:
    """The quantised file, and what it loses; returns the exit status."""
    print("calibrating and measuring; takes minutes", file=sys.stderr)
    loss = export_int8(model, args.output, args.calibrate, args.allow_loss)
    print(
        f"{args.output}: {size(args.output)}, calibrated with {loss.calibrated} pictures; maps of "
        f"{loss.measured} others change by {loss.mean:.4f} in the mean ({loss.worst:.4f} the worst)"
    )
    return 0


def size(path: Path) -> str:
    """Of a file, for people."""
    return f"{path.stat().st_size / 1e6:.1f} MB"


if __name__ == "__main__":
    cli.run(main)
