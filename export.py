"""Export a network for other runtimes, checked against the network itself.

    python export.py --weights runs/u2net_lite-1/best.pt --output lite.onnx
    python export.py --weights u2net.pth --output u2net.pt2                   # torch.export
    python export.py --weights u2net.pth --format aoti --output u2net.pt2     # for C++, see cpp/
    python export.py --weights u2net.pth --preset rembg --output ~/.rembg/own.onnx
    python export.py --weights u2net.pth --int8 --calibrate photos --output u2net_int8.onnx
    python export.py --weights lite --static --opset 12 --output lite.onnx    # for OpenCV's dnn
    python export.py --weights lite --output lite.tflite                      # LiteRT, for Android
    python export.py --weights lite --half --output lite.mlpackage            # Core ML, for iOS

The file takes a float32 batch N x 3 x H x W, divided by 255 and normalised by the mean and std in
its metadata; batch, height and width are dynamic. Its first output is the final map (the fused one;
IS-Net's finest) as probabilities, N x 1 x H x W. The file is kept only if it loads and reproduces
the network's outputs at several batch and image sizes. An AOTInductor package is compiled for this
machine's processor and for one image of --img-size, 1 x 3 x H x W, which takes minutes and a C++
compiler. A file for rembg is for its u2net_custom session (dis_custom for IS-Net), which reads no
file outside its own folder and always uses square inputs of 320 pixels (1024 for IS-Net), whatever
size the network was trained at:

    rembg p -m u2net_custom -x '{"model_path": "~/.rembg/own.onnx"}' images cutouts

Files for phones also take one image of --img-size. LiteRT's converter (pip install
'.[litert]') and Core ML's (pip install '.[coreml]') take minutes. Core ML runs only on macOS:
elsewhere torch computes the package's program to check it, and its speed and rounding on a device
remain unknown.

--int8 is for CPUs: a third of the size, and with OpenVINO (pip install openvino) faster than
floats. predict.py and validation.py run such a file directly. Calibration takes a folder of images
like those that the network will see, and uses 160 of them if there are as many: their values set
the ranges of the integers, except for every fifth image, which is held out for measuring. The mean
absolute difference between its maps there and those in float32 is printed; if it exceeds
--allow-loss, nothing is written.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from src import FULL, ISNET, Network, UserError, load_model
from src.device import describe_computing
from src.export.common import shape_of
from src.export.int8 import LIMIT, choose_images, export_int8
from src.export.mobile.coreml import check_package, export_coreml, runs_here
from src.export.mobile.litert import export_litert, export_litert_int8, import_converter
from src.export.onnx import check_opset, export_onnx
from src.export.torch_export import export_aoti, export_pt2
from src.files import check_outputs
from src.inference.sizes import parse_size
from src.pictures.images import list_images
from src.weights.named import kept_files
from src.words import counted
from train_utils import cli

FORMATS = {
    "onnx": ".onnx",
    "pt2": ".pt2",
    "aoti": ".pt2",
    "litert": ".tflite",
    "coreml": ".mlpackage",
}
GO_WITH = {  # flags, and the formats that support them
    "half": ("onnx", "coreml"),
    "half_weights": ("onnx", "litert"),
    "int8": ("onnx", "litert"),
    "static": ("onnx",),
    "opset": ("onnx",),
    "preset": ("onnx",),
}
ONE_SIZE = ("aoti", "litert", "coreml")  # formats with a fixed image size
EXCLUDE = (  # flags that exclude each other
    ("half", "half_weights"),
    ("half", "int8"),
    ("half_weights", "int8"),
    ("int8", "sides"),
    ("preset", "sides"),
    ("preset", "static"),
)
REMBG = {  # rembg's sessions for custom networks, by mean and std, with their image size
    (FULL.mean, FULL.std): ("u2net_custom", FULL.img_size),
    (ISNET.mean, ISNET.std): ("dis_custom", ISNET.img_size),
}


def main(argv: list[str] | None = None) -> int:
    """Load the weights, export them, print the result; returns the exit status."""
    args = parse_args(argv)
    calibrate = list_images(args.calibrate) if args.calibrate else []
    inside = args.output / "Manifest.json"  # of an existing package
    written = inside if args.output.is_dir() else args.output
    check_outputs({"output": written}, [args.weights, *kept_files(args.weights), *calibrate])
    model = load_weights(args)
    print(cli.describe_weights(args.weights, model.origin))
    if args.preset:
        check_rembg(model, args.weights)
    result = write(model, args)
    files = [args.output, *args.output.glob("**/*")]  # a Core ML package is a folder
    size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
    print(f"{args.output}: {size:.1f} MB, {result}")
    if args.format == "coreml" and not runs_here():
        print("checked by computing its program with torch; Core ML itself runs only on macOS")
    return 0


def write(model: Network, args: argparse.Namespace) -> str:
    """Write the file that the flags describe; returns the result of its check."""
    if args.int8:
        return measure(model, args)
    if args.format == "onnx":
        halves = args.half, args.half_weights
        worst = export_onnx(model, args.output, args.sides, *halves, args.static, args.opset)
    elif args.format == "litert":
        import_converter()  # fails early if it is missing
        print("converting; takes minutes", file=sys.stderr)
        worst = export_litert(model, args.output, args.sides, args.half_weights)
    elif args.format == "coreml":
        worst = export_coreml(model, args.output, args.sides, args.half)
    else:
        export = export_pt2 if args.format == "pt2" else export_aoti
        worst = export(model, args.output, args.sides)
    return f"at most {worst:.1g} off the network"


def measure(model: Network, args: argparse.Namespace) -> str:
    """Write a file in 8-bit integers; returns a description of its loss."""
    cpu = torch.device("cpu")
    computing = describe_computing((cpu, "float32"), (cpu, "int8"))
    print(f"calibrating and measuring, {computing}; takes minutes", file=sys.stderr)
    where = args.output, args.calibrate, args.allow_loss
    start = time.monotonic()

    def tell(step: str) -> None:
        print(f"{time.monotonic() - start:5.0f} s  {step}", file=sys.stderr, flush=True)

    if args.format == "litert":
        loss = export_litert_int8(model, *where, report=tell)
    else:
        loss = export_int8(model, *where, args.static, args.opset, report=tell)
    calibrated = counted(loss.calibrated, "image")
    calibrated = f"calibrated with {calibrated}; " if loss.calibrated else ""
    others = counted(loss.measured, "other" if loss.calibrated else "image")
    return (
        f"{calibrated}maps of {others} change by {loss.mean:.4f} in the mean "
        f"({loss.worst:.4f} the worst)"
    )


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of export.py; exits with status 2 if they conflict."""
    parser = make_parser()
    args = parser.parse_args(argv)
    suffix = args.output.suffix.lower()
    args.format = args.format or next(name for name in FORMATS if FORMATS[name] == suffix)
    if FORMATS[args.format] != suffix:
        parser.error(f"--format {args.format} is written to a {FORMATS[args.format]} file")
    for name, formats in GO_WITH.items():
        if getattr(args, name) and args.format not in formats:
            parser.error(f"{cli.flag(name)} goes with --format {' or '.join(formats)}")
    for name, other in EXCLUDE:
        if getattr(args, name) and getattr(args, other):
            parser.error(f"{cli.flag(name)} and {cli.flag(other)} do not go together")
    if args.int8 != bool(args.calibrate):
        parser.error("--int8 and --calibrate DIR go together")
    if args.allow_loss is not None and not args.int8:
        parser.error("--allow-loss goes with --int8")
    args.allow_loss = LIMIT if args.allow_loss is None else args.allow_loss
    try:
        check_values(args)
    except UserError as error:
        parser.error(error.describe(cli.flag))
    return args


def check_values(args: argparse.Namespace) -> None:
    """Check all values that can be checked before fetching weights and importing packages.

    Raises:
        UserError: a value is invalid.
    """
    size = parse_size(args.img_size, FULL.img_size)
    if args.static or args.format in ONE_SIZE:
        shape_of(size)
    if args.preset and (size.auto or size.width != size.height):
        raise UserError("rembg always uses square inputs", "img_size", size.value)
    check_opset(args.opset, args.int8)
    if args.calibrate:
        choose_images(args.calibrate)
    if args.format == "coreml":
        check_package(args.output)


def make_parser() -> argparse.ArgumentParser:
    """The parser of export.py's flags."""
    parser = cli.make_parser(__doc__)
    cli.add_weights_flags(parser)
    add = parser.add_argument
    text = (
        "onnx, pt2 (torch.export program), aoti (AOTInductor package), litert (.tflite) or coreml "
        "(.mlpackage) (default: by the suffix of --output, pt2 for .pt2)"
    )
    add("--format", choices=tuple(FORMATS), help=text)
    add("--output", type=output_path, required=True, metavar="F", help="file")
    add("--sides", action="store_true", help="also output the side maps, after the main map")
    text = "onnx, coreml: weights and arithmetic in float16"
    add("--half", action="store_true", help=text)
    text = "onnx, litert: weights in float16, arithmetic in float32, for a file of half the size"
    add("--half-weights", action="store_true", help=text)
    add("--int8", action="store_true", help="onnx, litert: in 8-bit integers, with --calibrate")
    add("--calibrate", type=Path, metavar="DIR", help="int8: a folder of images, at least 5")
    text = (
        "int8: how far its maps may be from the network's, in the mean over pixels in 0 … 1 "
        f"(default: {LIMIT})"
    )
    add("--allow-loss", type=cli.fraction, metavar="X", help=text)
    text = "onnx: for one image of --img-size alone, as OpenCV's dnn, TensorRT and NPUs want it"
    add("--static", action="store_true", help=text)
    text = (
        "onnx: version of its operators, from 11 (default: 15, or the next that holds the network)"
    )
    add("--opset", type=cli.positive, metavar="N", help=text)
    text = "rembg: onnx for its session u2net_custom, for IS-Net dis_custom; warns of other sizes"
    add("--preset", choices=("rembg",), help=text)
    return parser


def output_path(text: str) -> Path:
    """An argparse type: a file to write, or the existing folder of a Core ML package to replace."""
    path = Path(text)
    if path.suffix.lower() == FORMATS["coreml"] and path.is_dir():
        return path
    return cli.file_named(*FORMATS.values())(text)


def load_weights(args: argparse.Namespace) -> Network:
    """The network of --weights, at the size given by --img-size."""
    model = load_model(args.weights)
    if isinstance(args.img_size, int):
        model.img_size = args.img_size
    elif args.img_size:
        model.input_size = str(parse_size(args.img_size, model.img_size).value)
    if model.config.in_ch != 3:
        channels = counted(model.config.in_ch, "channel")
        raise UserError(f"{args.weights}: takes {channels}, not 3")
    return model


def check_rembg(model: Network, weights: Path) -> None:
    """Refuse a network that rembg cannot use; warn if rembg runs it at another size."""
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
