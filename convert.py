"""Turn weights of any kind that is read into another kind.

    python convert.py u2netp.pth lite.safetensors            # official in, ours out
    python convert.py runs/u2net_lite-1/best.pt lite.safetensors --half
    python convert.py lite.safetensors u2netp.pth --official
    python convert.py u2netp.onnx lite.pt
    python convert.py best.pt my_network                     # a folder, as save_pretrained makes it

The suffix of OUTPUT says what comes out: .pt or .pth is a torch file, .safetensors that; without
one it is a folder of config.json and model.safetensors, which from_pretrained reads and the Hugging
Face Hub holds. For .onnx and the like, which are programs rather than weights, there is export.py.
"""

import argparse
from pathlib import Path

from src import UserError, load_model, save_model
from src.layouts import official_state
from src.storage import save_state
from train_utils import cli

SUFFIXES = ("", ".pt", ".pth", ".safetensors")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of convert.py."""
    parser = cli.make_parser(__doc__)
    add = parser.add_argument
    add("input", type=Path, metavar="INPUT", help="weights: a file of any kind, or such a folder")
    add("output", type=Path, metavar="OUTPUT", help="file or folder to write")
    add("--official", action="store_true", help="a bare state_dict under U-2-Net's own names")
    add("--half", action="store_true", help="convolutions in 16 bits, for half the size")
    args = parser.parse_args(argv)
    if args.output.suffix not in SUFFIXES:
        kinds = ", ".join(SUFFIXES[1:])
        parser.error(f"OUTPUT {args.output}: expected {kinds} or a folder; for .onnx see export.py")
    if not args.output.suffix and (args.official or args.half):
        parser.error("--official and --half go with a file as OUTPUT")
    if args.output.resolve() == args.input.resolve():
        parser.error("OUTPUT is INPUT; name another file")
    return args


def main(argv: list[str] | None = None) -> int:
    """Parse, load, write, say what came out."""
    args = parse_args(argv)
    model = load_model(args.input)
    if args.output.is_file() and not args.output.suffix:
        raise UserError(f"{args.output}: is a file; name a folder, or a file with a suffix")
    if args.official:
        save_state(official_state(model), args.output, args.half)
    elif args.output.suffix:
        save_model(model, args.output, args.half)
    else:
        model.save_pretrained(args.output)
    print(f"{args.input}: {model.origin}")
    files = [args.output] if args.output.is_file() else sorted(args.output.iterdir())
    print(f"{args.output}: {sum(f.stat().st_size for f in files) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    cli.run(main)
