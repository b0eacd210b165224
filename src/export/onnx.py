"""Networks for other runtimes: ONNX, torch.export programs and AOTInductor packages, each checked
before it is kept.

Every export takes a float32 input N×3×H×W, normalised as ``MEAN`` and ``STD`` of
``src/pictures/images.py`` say, and gives the fused map as probabilities N×out_ch×H×W first: of any
batch and size from 32², but for AOTInductor packages, which take one picture of one size.
"""

import copy
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import NoCompilerError, allow_even_sizes, compile_package
from ..errors import UserError
from ..files import atomic_path
from ..inference.preprocess import MEAN, STD

TOLERANCE = 1e-4  # largest difference of a probability from the network's own, in float32
HALF_TOLERANCE = 0.02  # with weights and arithmetic of 16 bits
_CHECKED = ((1, 320, 320), (2, 96, 64), (3, 61, 93))  # batch, height, width


def export_onnx(
    model: nn.Module, path: str | Path, sides: bool = False, half: bool = False
) -> float:
    """One ``.onnx`` file with everything in it.

    Args:
        model: a network of :func:`build_model`, not fused; it stays as it is.
        path: where to write; nothing is left there if the check fails.
        sides: give the side maps too, after the fused one.
        half: weights and arithmetic in float16, input and outputs still float32.

    Returns:
        The largest difference from the network itself that the check found.

    Raises:
        UserError: a package is missing, or the file does not give what the network gives.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"export to ONNX needs {error.name}: pip install onnx onnxruntime onnxscript"
        ) from None
    network = _Maps(model, sides)
    exported = _program(_Maps(model, sides, torch.float16) if half else network)
    with _silent("onnx_ir"):  # warns of what the exporter's max_unpool2d leaves open
        program = torch.onnx.export(exported, dynamo=True, verbose=False)
    for i, value in enumerate(program.model.graph.outputs):
        value.name = f"side{i}" if i else "saliency"
    program.model.graph.inputs[0].name = "pictures"
    proto = program.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # the exporter's notes: stack traces, with paths of this machine
    onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in about(model).items()})
    with atomic_path(path) as temporary:
        onnx.save(proto, temporary)
        onnx.checker.check_model(temporary, full_check=True)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        limit = HALF_TOLERANCE if half else TOLERANCE
        return _check(network, lambda x: session.run(None, {"pictures": x.numpy()}), limit, path)


def export_pt2(model: nn.Module, path: str | Path, sides: bool = False) -> float:
    """A ``torch.export`` program, which ``torch.export.load`` reads without this toolkit.

    Args, returns and raises as :func:`export_onnx`.
    """
    network = _Maps(model, sides)
    program = _program(network)
    with _pt2_path(path) as named:
        extra = {"about.json": json.dumps(about(model))}
        packed = io.BytesIO()  # torch's own writer ends the process where the disk is full
        torch.export.save(program, packed, extra_files=extra)
        named.write_bytes(packed.getbuffer())
        loaded = torch.export.load(named).module()
        return _check(network, lambda x: [m.numpy() for m in loaded(x)], TOLERANCE, path)


def export_aoti(model: nn.Module, path: str | Path, sides: bool = False) -> float:
    """An AOTInductor package: compiled for this machine's processor, loaded by torch from Python or
    by LibTorch from C++ (``cpp/``). Takes minutes, and a C++ compiler.

    It takes 1×3×S×S, S being ``model.img_size``. Were batch or size free, torch would compile for
    six times as long, and could not put the weights in the order that oneDNN reads them in.

    Args, returns and raises as :func:`export_onnx`.
    """
    network = _Maps(model, sides)
    shape = (1, model.img_size, model.img_size)
    program = _program(network, shape)
    told = {k: json.dumps(v) for k, v in about(model).items()}
    options = {"aot_inductor.metadata": told, "freezing": True}
    with _pt2_path(path) as named, torch.no_grad():  # freezing is for inference alone
        try:
            run = compile_package(program, named, options)
        except NoCompilerError as error:
            raise UserError(f"--format aoti needs a C++ compiler, such as g++ ({error})") from None
        return _check(network, lambda x: [m.numpy() for m in run(x)], TOLERANCE, path, [shape])


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Only errors of this logger."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _pt2_path(path: str | Path) -> Iterator[Path]:
    """As :func:`~.files.atomic_path`, with the suffix that torch asks for."""
    with atomic_path(path) as temporary:
        named = temporary.with_suffix(".pt2")
        try:
            yield named
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


def about(model: nn.Module) -> dict[str, object]:
    """What a file should say of itself."""
    try:
        version = metadata.version("u2net-toolkit")
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        version = "clone"
    return {
        "network": model.config.name,
        "config": model.config.to_dict(),
        "img_size": model.img_size,
        "object_map": model.config.object_map,
        "mean": list(MEAN),
        "std": list(STD),
        "version": version,
    }


class _Maps(nn.Module):
    """Probabilities of the fused map, and of the side maps if wanted, as a tuple."""

    def __init__(self, model: nn.Module, sides: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = model.plain().cpu()
        self.network.fuse().requires_grad_(False).to(dtype)
        self.count = None if sides else 1
        self.dtype = dtype

    def forward(self, pictures: Tensor) -> tuple[Tensor, ...]:
        logits = self.network.logits(pictures.to(self.dtype))[: self.count]
        return tuple(self.network.probabilities(x) for x in logits)


def _program(
    network: _Maps, shape: tuple[int, int, int] | None = None
) -> torch.export.ExportedProgram:
    """Of that batch, height and width, or with all three free.

    For these, two pictures, as a batch of 1 would be taken for a constant; no names for the sizes,
    as ceil mode pooling makes ranges of them that no name fits; and sizes that are odd at every
    pooling, as inductor takes ceil mode for floor mode where the example cannot tell them apart
    (who compiles a loaded program would get all other sizes wrong).
    """
    channels = network.network.config.in_ch
    if shape:
        return torch.export.export(network.eval(), (torch.zeros(shape[0], channels, *shape[1:]),))
    stride = getattr(network.network.config, "stride", 32)
    free = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, channels, 2 * stride + 1, 3 * stride + 1)
    shapes = {"pictures": {0: free, 2: free, 3: free}}
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=shapes)
    allow_even_sizes(program)
    return program


@torch.no_grad()
def _check(
    network: nn.Module,
    run: Callable[[Tensor], Sequence[np.ndarray]],
    limit: float,
    path: str | Path,
    shapes: Sequence[tuple[int, int, int]] = _CHECKED,
) -> float:
    """The largest difference from the network in float64, over several batches and sizes.

    float64, as float32 rounds too, and twice of what it costs the network itself is allowed: the
    published lite weights hold constants beyond 1000, and are 9e-5 off in torch's own float32.
    """
    exact = copy.deepcopy(network).double()
    exact.dtype = torch.float64
    generator = torch.Generator().manual_seed(0)
    worst = own = 0.0
    channels = network.network.config.in_ch
    for batch, height, width in shapes:
        # Patches, not noise: a trained network sees nothing there, and 0 is soon equalled.
        coarse = 2 * torch.randn(batch, channels, 5, 5, generator=generator)
        x = F.interpolate(coarse, (height, width), mode="bicubic")
        if network.network.jumps:  # on what is perfectly smooth, which no picture is
            x += 0.2 * torch.randn(x.shape, generator=generator)
        for expected, found, eager in zip(exact(x), run(x), network(x), strict=True):
            own = max(own, float((eager - expected).abs().max()))
            if found.shape != expected.shape:
                raise UserError(f"{path}: gives {found.shape}, expected {tuple(expected.shape)}")
            off = np.abs(found - expected.numpy())
            worst = max(worst, float(np.quantile(off, 0.99 if network.network.jumps else 1)))
    limit = max(limit, 2 * own)
    if not worst <= limit:
        raise UserError(f"{path}: differs from the network by {worst:.2g}, more than {limit:.2g}")
    return worst
