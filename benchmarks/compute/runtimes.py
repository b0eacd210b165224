"""Compare runtimes on the same network: error, speed and file size.

    python -m benchmarks.compute.runtimes --weights u2netp.pth
    python -m benchmarks.compute.runtimes --weights u2netp.pth --golden a.npz --mask cpp/build/mask

Errors are the largest differences in any pixel's probability, over all maps, from the float32
network as trained or, with --golden, from that file's arrays (``input``, ``outputs``: 1×3×H×W and
7×1×H×W, and the same with the prefix ``odd_``). The C++ program (``cpp/``, built beforehand) writes
8-bit masks: they are compared with predict.py's, for a generated image or --picture. Times are for
one image at --size, medians of rounds in which the runtimes take turns. The AOTInductor package is
for that size only, so it is not run on other inputs; it takes minutes to compile.
"""

import argparse
import copy
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from src import Predictor, load_model
from src.export.onnx import export_onnx
from src.export.torch_export import export_aoti, export_pt2
from src.weights.load import SHIPPED
from train_utils import cli

from ..timing import in_turn

Run = Callable[[Tensor], Sequence[np.ndarray]]
AOTI = "AOTInductor"


def main(argv: list[str] | None = None) -> int:
    """Export, compare, time, print one Markdown table."""
    args = parse_args(argv)
    model = load_model(args.weights)
    model.img_size = args.size
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        runtimes, files = make(model, Path(folder))
        cases = read_golden(args.golden) if args.golden else made_up(model, args.size)
        of_size = [case for case in cases if case[0].shape[2:] == (args.size, args.size)]
        off = {
            name: worst(run, of_size if name == AOTI else cases) for name, run in runtimes.items()
        }
        x = torch.randn(1, 3, args.size, args.size)
        times = in_turn(
            {name: lambda run=run: run(x) for name, run in runtimes.items()}, args.rounds
        )
        rows = [
            (name, f"{off[name]:.1e}", f"{times[name] * 1000:.0f}", megabytes(files.get(name)))
            for name in runtimes
        ]
        if args.mask:
            levels = cpp_off(args, files[AOTI])
            rows.append((f"C++, {AOTI}", f"{levels}/255 in the mask", "", ""))
    print("| runtime | largest error | ms | file, MB |\n|---|---:|---:|---:|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The flags."""
    parser = cli.make_parser(__doc__)
    parser.add_argument("--weights", type=Path, default=SHIPPED, metavar="W", help="in any format")
    parser.add_argument("--golden", type=Path, metavar="F.npz", help="known inputs and outputs")
    parser.add_argument("--mask", type=Path, metavar="PROGRAM", help="program built from cpp/")
    parser.add_argument("--picture", type=Path, nargs="+", default=[], metavar="P", help="for C++")
    parser.add_argument("--size", type=cli.positive, default=320, metavar="PX", help="size to time")
    parser.add_argument("--rounds", type=cli.positive, default=7, metavar="N", help="timed rounds")
    return parser.parse_args(argv)


def make(model: nn.Module, folder: Path) -> tuple[dict[str, Run], dict[str, Path]]:
    """Every runtime as a function from images to all maps, and the files that some read."""
    import onnxruntime

    files = {
        "ONNX Runtime": folder / "a.onnx",
        "torch.export": folder / "a.pt2",
        AOTI: folder / "b.pt2",
    }
    for write, path in zip((export_onnx, export_pt2, export_aoti), files.values(), strict=True):
        write(model, path, sides=True)
    session = onnxruntime.InferenceSession(
        files["ONNX Runtime"], providers=["CPUExecutionProvider"]
    )
    program = torch.export.load(files["torch.export"]).module()
    package = torch._inductor.aoti_load_package(str(files[AOTI]))

    def eager(network: nn.Module) -> Run:
        return lambda x: [network.probabilities(m).numpy() for m in network.logits(x)]

    compiled = load_fused(model)
    compiled.logits = torch.compile(compiled.logits, dynamic=True)
    return {
        "eager": eager(model),
        "eager, batch norm folded": eager(load_fused(model)),
        "torch.compile": eager(compiled),
        "ONNX Runtime": lambda x: session.run(None, {"images": x.numpy()}),
        "torch.export": lambda x: [m.numpy() for m in program(x)],
        AOTI: lambda x: [m.numpy() for m in package(x)],
    }, files


def load_fused(model: nn.Module) -> nn.Module:
    """A copy with batch norm folded; the model stays unchanged."""
    return copy.deepcopy(model).fuse().requires_grad_(False)


def read_golden(path: Path) -> list[tuple[Tensor, np.ndarray]]:
    """The pairs of inputs and outputs in the file."""
    arrays = np.load(path)
    sizes = [name.removesuffix("input") for name in arrays.files if name.endswith("input")]
    return [(torch.from_numpy(arrays[f"{s}input"]), arrays[f"{s}outputs"]) for s in sizes]


def made_up(model: nn.Module, size: int) -> list[tuple[Tensor, np.ndarray]]:
    """Inputs of two sizes, and the network's own outputs."""
    inputs = [torch.randn(1, 3, *shape) for shape in ((size, size), (253, 317))]
    maps = [[model.probabilities(m).numpy() for m in model.logits(x)] for x in inputs]
    return [(x, np.concatenate(m)) for x, m in zip(inputs, maps, strict=True)]


def worst(run: Run, cases: Sequence[tuple[Tensor, np.ndarray]]) -> float:
    """The largest difference over all maps of all inputs; NaN if there are none."""
    differences = (float(np.abs(np.concatenate(run(x)) - y).max()) for x, y in cases)
    return max(differences, default=float("nan"))


def cpp_off(args: argparse.Namespace, package: Path) -> int:
    """The largest difference between the C++ program's masks and predict.py's in float32."""
    predict = Predictor(args.weights, args.size, device="cpu", amp="off")
    pictures, result = args.picture, package.with_suffix(".png")
    if not pictures:
        pictures = [package.with_name("made_up.png")]
        noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(pictures[0])
    largest = 0
    for picture in pictures:
        subprocess.run([args.mask, package, picture, result], check=True)
        ours = (predict(picture) * 255).round().astype(int)
        largest = max(largest, int(np.abs(np.asarray(Image.open(result)) - ours).max()))
    return largest


def megabytes(path: Path | None) -> str:
    """A file's size; empty for None."""
    return f"{path.stat().st_size / 1e6:.1f}" if path else ""


if __name__ == "__main__":
    cli.run(main)
