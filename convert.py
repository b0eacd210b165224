"""Convert weights of any readable kind to another kind.

    python convert.py u2netp.pth lite.safetensors            # official in, ours out
    python convert.py runs/u2net_lite-1/best.pt lite.safetensors --half
    python convert.py lite.safetensors u2netp.pth --official
    python convert.py u2netp.onnx lite.pt
    python convert.py best.pt my_network                     # a folder, as by save_pretrained
    python convert.py runs/a/best.pt mean.pt --average-with runs/b/best.pt

The suffix of OUTPUT chooses the kind: .pt or .pth is a torch file, .safetensors a safetensors file;
without a suffix (my_network, lite-v1.2, or any.name/) it is a folder of config.json and
model.safetensors, as on the Hugging Face Hub, which from_pretrained and transformers read. For
.onnx and the like, which are programs rather than weights, use export.py.

--average-with averages the weights of runs that started from the same weights, which is often
better than any of them (Wortsman et al. 2022, "Model soups"); for other runs it is useless.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from src import Network, UserError, load_model, save_model
from src.export.hub.transformers import CODE, ONNX, PREPROCESSOR
from src.files import check_outputs, real_path
from src.weights.layouts import lost_in_official, official_state
from src.weights.named import kept_files
from src.weights.storage import FOLDER, save_state
from train_utils import cli
from train_utils.training.checkpoint import has_checkpoint

SUFFIXES = (".pt", ".pth", ".safetensors")


def main(argv: list[str] | None = None) -> int:
    """Load the input, write the output, describe both; returns the exit status."""
    args = parse_args(argv)
    if args.folder and args.output.is_file():
        raise UserError(f"{args.output}: is a file; name a folder, or a file with a suffix")
    inputs = [args.input, *args.average_with]
    kept = [file for path in inputs for file in kept_files(path)]
    check_outputs({"": written_files(args)}, [*inputs, *kept])
    check_run(args.output, args.folder)
    networks = {path: load_model(path) for path in inputs}
    model = average(networks, args.shares)
    if args.img_size:
        model.img_size = args.img_size
    elif others := {network.img_size for network in networks.values()} - {model.img_size}:
        sizes = ", ".join(f"{size}²" for size in sorted(others))
        print(f"{args.input}'s image size is kept, {model.img_size}²; the others have {sizes}")
    if args.folder:
        model.save_pretrained(args.output, onnx=args.onnx)
    elif args.official:
        save_state(official_state(model), args.output, args.half)
    else:
        save_model(model, args.output, args.half)
    for path, network in networks.items():
        print(f"{path}: {network.origin}")
    if args.official:
        for field, value in lost_in_official(model).items():
            print(describe_loss(field, value))
    files = args.output.rglob("*") if args.folder else [args.output]
    print(f"{args.output}: {sum(f.stat().st_size for f in files if f.is_file()) / 1e6:.1f} MB")
    return 0


def average(networks: Mapping[Path, Network], shares: Sequence[float] = ()) -> Network:
    """The first network, with the mean of all networks' weights and batch norm statistics.

    Args:
        networks: by file.
        shares: the weight of each network in the mean; equal by default.

    Raises:
        UserError: the networks' tables differ.
    """
    (first, model), *others = networks.items()
    for path, other in others:
        if other.config != model.config:
            table, own = other.config.to_dict(), model.config.to_dict()
            named = ", ".join(name for name in table if table[name] != own.get(name))
            problem = f"{path}: cannot be averaged with {first}: their networks differ in {named}"
            raise UserError(problem, advice="average runs that began with the same weights")
    states = [network.state_dict() for network in networks.values()]
    parts = torch.tensor(shares or [1.0] * len(states), dtype=torch.float64)
    parts /= parts.sum()
    for name, own in states[0].items():
        if own.is_floating_point():
            stacked = torch.stack([state[name].double() for state in states], dim=-1)
            own.copy_((stacked * parts).sum(dim=-1))
    return model


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags of convert.py; exits with status 2 if they conflict."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add(
        "input",
        type=cli.weights_path,
        metavar="INPUT",
        help="weights: a file of any kind, or a folder of weights",
    )
    add("output", metavar="OUTPUT", help="file or folder to write")
    add("--official", action="store_true", help="a bare state_dict under U-2-Net's own names")
    add("--onnx", action="store_true", help="in a folder: also a file for transformers.js")
    add("--half", action="store_true", help="convolutions in 16 bits, for half the size")
    text = "weights whose mean with INPUT is written, of runs that began with the same weights"
    add("--average-with", nargs="+", type=cli.weights_path, default=[], metavar="W", help=text)
    text = "how much INPUT and the others count in the mean (default: equally)"
    add("--shares", nargs="+", type=cli.not_negative, default=[], metavar="N", help=text)
    text = "side of the square that images are resized to, kept in the file (default: INPUT's)"
    add("--img-size", type=cli.input_size, metavar="N", help=text)
    args = parser.parse_args(argv)
    args.folder, args.output = is_folder(args.output), Path(args.output)
    if args.img_size and not isinstance(args.img_size, int):
        parser.error("--img-size: expected one side in pixels, as weights keep that of a square")
    inputs = [args.input, *args.average_with]
    places = [real_path(path) for path in inputs]
    if twice := [str(inputs[i]) for i, place in enumerate(places) if place in places[:i]]:
        parser.error(f"--average-with {twice[0]}: named twice; name each file once")
    if args.shares and (len(args.shares) != len(inputs) or not sum(args.shares)):
        parser.error(f"--shares: expected {len(inputs)} numbers, one for each weights, not all 0")
    if not args.folder and args.output.suffix not in SUFFIXES:
        parser.error(
            f"OUTPUT {args.output}: expected {', '.join(SUFFIXES)}, or a folder (with / behind its "
            "name); for .onnx see export.py"
        )
    if args.folder and (args.official or args.half):
        parser.error("--official and --half go with a file as OUTPUT")
    if args.onnx and not args.folder:
        parser.error("--onnx goes with a folder as OUTPUT; for a file of its own, see export.py")
    return args


def written_files(args: argparse.Namespace) -> list[Path]:
    """The files that are written for OUTPUT."""
    names = [*FOLDER, "README.md", CODE, PREPROCESSOR, *([ONNX] if args.onnx else [])]
    return [args.output / name for name in names] if args.folder else [args.output]


def check_run(output: Path, is_folder: bool) -> None:
    """Refuse to replace the state or the weights of a run.

    Raises:
        UserError: OUTPUT would replace them.
    """
    output = real_path(output)  # a link itself is kept, but its target is replaced
    run = output if is_folder else output.parent
    of_run = is_folder or re.fullmatch(r"(last(-\d+)?|best)\.pt", output.name)
    if of_run and has_checkpoint(run):
        file, folder = (
            f"belongs to the run in {run}",
            "holds a run, which would take these as its weights",
        )
        raise UserError(f"{output}: {folder if is_folder else file}; choose another OUTPUT")


def describe_loss(field: str, value: Any) -> str:
    """A line about a field of the network's table that the official layout cannot hold."""
    if field == "img_size":
        return f"trained at {value}², which this layout cannot hold: use it with --img-size {value}"
    shown = value if isinstance(value, str) else ", ".join(f"{number:g}" for number in value)
    return f"{field} {shown}: this layout cannot hold it; leave out --official to keep it"


def is_folder(name: str) -> bool:
    """Whether a name means a folder: it exists as one, ends with / or has no file suffix."""
    suffix = Path(name).suffix
    return name.endswith("/") or Path(name).is_dir() or not suffix[1:2].isalpha()


if __name__ == "__main__":
    cli.run(main)
