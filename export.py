"""Write a network for other runtimes, checked against the network itself.

    python export.py --weights runs/u2net_lite-1/best.pt --output lite.onnx
    python export.py --weights u2net.pth --output u2net.pt2                   # torch.export
    python export.py --weights u2net.pth --format aoti --output u2net.pt2     # for C++, see cpp/
    python export.py --weights u2net.pth --preset rembg --output ~/.rembg/u2net.onnx
    python export.py --weights u2net.pth --int8 --calibrate photos --output u2net_int8.onnx

The file takes a float32 batch N x 3 x H x W, divided by 255 and normalised by the mean and std in
its metadata; batch, height and width are free. Its first output is the map that counts (the fused
one; IS-Net's finest) as probabilities, N x 1 x H x W. Before it is kept, it has to load and to give
what the network gives, at several batches and sizes. An AOTInductor package is compiled for this
machine's processor and for one image of --img-size, 1 x 3 x H x W, which takes minutes and a C++
compiler. A file for rembg is for its u2net_custom session (of IS-Net, for dis_custom), which reads
no file outside its own folder, and shows a network squares of 320 pixels (1024), whatever it was
trained at:

    rembg p -m u2net_custom -x '{"model_path": "~/.rembg/u2net.onnx"}' images cutouts

--int8 is for CPUs: a third of the size, and with OpenVINO (pip install openvino) faster than in
floats. predict.py and validation.py run such a file as it is. It takes a folder of images such as
the network will see, 160 of them if there are as many: their values give the ranges of its
integers, except for every fifth image, which is kept to measure on. The mean absolute difference
between its maps there and those in float32 is printed; where it is more than --allow-loss, nothing
is written.
"""

import argparse
import sys
from pathlib import Path

import torch

from src import FULL, ISNET, Network, UserError, load_model
from src.export.int8 import LIMIT, export_int8
from src.export.onnx import export_onnx
from src.export.torch_export import export_aoti, export_pt2
from src.files import check_outputs
from src.inference.sizes import parse_size
from src.pictures.images import list_images
from train_utils import cli

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}
REMBG = {  # what rembg does to images before its sessions for any network: mean, std; size
    (FULL.mean, FULL.std): ("u2net_custom", FULL.img_size),
    (ISNET.mean, ISNET.std): ("dis_custom", ISNET.img_size),
}


def main(argv: list[str] | None = None) -> int:
    """Load the weights, export them, print the result; returns the exit status."""
    args = parse_args(argv)
    calibrate = list_images(args.calibrate) if args.calibrate and args.calibrate.is_dir() else []
    check_outputs({"output": args.output}, [args.weights, *calibrate])
    model = load_weights(args)
    print(cli.describe_weights(args.weights, model.origin))
    if args.preset:
        check_rembg(model, args.weights)
    if args.int8:
        computing = cli.describe_computing(torch.device("cpu"), "float32", "int8")
        print(f"calibrating and measuring, {computing}; takes minutes", file=sys.stderr)
        loss = export_int8(model, args.output, args.calibrate, args.allow_loss)
        result = (
            f"calibrated with {loss.calibrated} images; maps of {loss.measured} others change by "
            f"{loss.mean:.4f} in the mean ({loss.worst:.4f} the worst)"
        )
    else:
        if args.format == "onnx":
            worst = export_onnx(model, args.output, args.sides, args.half, args.half_weights)
        else:
            export = export_pt2 if args.format == "pt2" else export_aoti
            worst = export(model, args.output, args.sides)
        result = f"at most {worst:.1g} off the network"
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB, {result}")
    return 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of export.py, checked; exits with 2 where they do not go together."""
    parser = make_parser()
    args = parser.parse_args(argv)
    suffix = args.output.suffix.lower()
    args.format = args.format or next(name for name in FORMATS if FORMATS[name] == suffix)
    if FORMATS[args.format] != suffix:
        parser.error(f"--format {args.format} is written to a {FORMATS[args.format]} file")
    onnx = args.format == "onnx"
    if args.preset and (not onnx or args.sides):
        parser.error("--preset rembg goes with --format onnx, without --sides")
    if args.half and not onnx:
        parser.error("--half goes with --format onnx")
    if args.half_weights and (not onnx or args.half or args.int8):
        parser.error("--half-weights goes with --format onnx, without --half and --int8")
    if args.int8 and (not onnx or args.sides or args.half):
        parser.error("--int8 goes with --format onnx, without --sides and --half")
    if args.int8 != bool(args.calibrate):
        parser.error("--int8 and --calibrate DIR go together")
    return args


def make_parser() -> argparse.ArgumentParser:
    """The parser of export.py's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    add = parser.add_argument
    text = (
        "onnx, pt2 (torch.export program) or aoti (AOTInductor package) (default: onnx or pt2, by "
        "the suffix of --output)"
    )
    add("--format", choices=tuple(FORMATS), help=text)
    add("--output", type=cli.file_named(*FORMATS.values()), required=True, metavar="F", help="file")
    add("--sides", action="store_true", help="give the side maps too, after the one that counts")
    add("--half", action="store_true", help="onnx: weights and arithmetic in float16")
    text = "onnx: weights in float16, arithmetic in float32, for a file of half the size"
    add("--half-weights", action="store_true", help=text)
    add("--int8", action="store_true", help="onnx: in 8-bit integers, with --calibrate")
    add("--calibrate", type=Path, metavar="DIR", help="int8: a folder of images, at least 5")
    text = "int8: how far its maps may be from the network's, in the mean over pixels in 0 … 1"
    add("--allow-loss", type=cli.fraction, default=LIMIT, metavar="X", help=text)
    text = "rembg: onnx for its session u2net_custom, of IS-Net dis_custom; warns of another size"
    add("--preset", choices=("rembg",), help=text)
    return parser


def load_weights(args: argparse.Namespace) -> Network:
    """The network of --weights, for the size that --img-size gives."""
    model = load_model(args.weights)
    if isinstance(args.img_size, int):
        model.img_size = args.img_size
    elif args.img_size:
        model.input_size = str(parse_size(args.img_size, model.img_size).value)
        if args.preset:
            raise UserError("that program shows a network squares", "img_size", model.input_size)
    if model.config.in_ch != 3:
        raise UserError(f"{args.weights}: takes {model.config.in_ch} channels, not 3")
    return model


def check_rembg(model: Network, weights: Path) -> None:
    """Refuse a network that rembg cannot use, and warn of one that it uses at another size."""
    if model.config.out_ch != 1:
        raise UserError(f"is for one map; {weights}: {model.origin}", "preset", "rembg")
    config = model.config
    if (config.mean, config.std) not in REMBG:
        raise UserError(
            f"no session of that program prepares images by mean {config.mean} and std "
            f"{config.std}, as {weights} needs it",
            "preset",
            "rembg",
        )
    session, size = REMBG[config.mean, config.std]
    if session != "u2net_custom":
        print(f"for rembg's session {session}: rembg p -m {session}")
    if model.img_size != size:
        print(f"trained at {model.img_size}², but rembg runs it at {size}²: expect less")


if __name__ == "__main__":
    cli.run(main)
