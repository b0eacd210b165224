"""Inference on the CPU: the tutorials' method, other runtimes and ours, in turn in one process.

Runs as part of ``python -m benchmarks``. It compares:

- tutorial: the unmodified network, eager, NCHW, float32, batch norm not folded;
- ONNX Runtime and OpenVINO, if installed, on the output of export.py;
- ours: Predictor, as predict.py and validation.py use it, from 8-bit images to maps, and the same
  with the OpenVINO engine.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from src import Predictor, build_model, load_model
from src.device import pick_device, pick_dtype
from src.export.onnx import export_onnx
from src.inference.openvino import ENGINES
from src.inference.preprocess import normalize
from src.weights.load import SHIPPED

from ..timing import in_turn, matrix_limit

Run = Callable[[], Tensor]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure(network: str, batches: list[int], size: int, rounds: int) -> list[dict[str, object]]:
    """A row for each method and batch size.

    Args:
        network: a name from ``NETWORKS``; lite uses its shipped weights, others untrained ones.
        batches: batch sizes.
        size: side of the images in pixels.
        rounds: turns of each method.
    """
    torch.manual_seed(0)
    model = (load_model(SHIPPED) if network == "u2net_lite" else build_model(network)).eval()
    limits = {name: matrix_limit(_DTYPES[name]) for name in _precisions()}
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "network.onnx"
        if any(map(_installed, ("onnxruntime", "openvino"))):
            with torch.inference_mode(False):
                export_onnx(model, path)
        for batch in batches:
            pictures = _pictures(batch, size)
            flops = _flops(model, pictures)
            runs = _ways(model, path, pictures)
            truth = runs["tutorial", "fp32"]()
            off = {way: (run() - truth).abs().mean().item() for way, run in runs.items()}
            times = in_turn(runs, rounds, calls=max(1, 4 // batch))
            base = times["tutorial", "fp32"]
            rows += [
                {
                    "network": network,
                    "batch": batch,
                    "way": way,
                    "precision": precision,
                    "ms_per_picture": 1e3 * taken / batch,
                    "times_tutorial": base / taken,
                    "of_matrix_limit": flops / taken / limits[precision],
                    "mean_off": off[way, precision],
                }
                for (way, precision), taken in times.items()
            ]
    return rows


def _ways(model: nn.Module, path: Path, pictures: Tensor) -> dict[tuple[str, str], Run]:
    """The contenders by name and precision, each computing maps N×1×H×W from the images."""
    x = normalize(pictures).contiguous()
    side = pictures.shape[-1]
    runs: dict[tuple[str, str], Run] = {("tutorial", "fp32"): lambda: model(x)}
    if _installed("onnxruntime"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: x.numpy()}
        runs["ONNX Runtime", "fp32"] = lambda: torch.from_numpy(session.run(None, feed)[0])
    for precision in _precisions():
        if _installed("openvino"):
            runs["OpenVINO", precision] = _openvino(path, x, precision)
        for engine in ENGINES if _installed("openvino") else ENGINES[:1]:
            amp = "off" if precision == "fp32" else precision
            ours = Predictor(model, side, "cpu", amp, engine=engine)
            name = "ours" if engine == "torch" else "ours, OpenVINO engine"
            runs[name, precision] = lambda ours=ours: ours.probabilities(pictures)
    return runs


def _precisions() -> tuple[str, ...]:
    half = pick_dtype("auto", pick_device("cpu")) == torch.bfloat16
    return ("fp32", "bf16") if half else ("fp32",)


def _openvino(path: Path, x: Tensor, precision: str) -> Run:
    import openvino

    core = openvino.Core()
    network = core.read_model(path)
    network.reshape(list(x.shape))
    hints = {
        "INFERENCE_PRECISION_HINT": precision.replace("fp", "f"),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(network, "CPU", hints)
    array = x.numpy()
    return lambda: torch.from_numpy(compiled(array)[0])


def _pictures(batch: int, size: int) -> Tensor:
    """Smooth noise N×3×S×S, uint8."""
    noise = torch.rand(batch, 3, 12, 12) * 255
    return nn.functional.interpolate(noise, size=[size, size], mode="bicubic").clamp(0, 255).byte()


def _flops(model: nn.Module, pictures: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        model(normalize(pictures))
    return counter.get_total_flops()


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
