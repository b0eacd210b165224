"""Export to 8-bit integers for CPUs, as an ONNX file of QuantizeLinear and DequantizeLinear: value
ranges are calibrated on images, and the loss is measured on others before the file is kept.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path
from ..inference.predictor import Predictor
from ..networks.base import Network
from ..pictures.images import list_images, open_image
from ..words import counted
from .onnx import IR_VERSION, check_opset, export_onnx, require_onnx

LIMIT = 0.01  # of Loss.mean, which bounds how much the MAE of the maps can change
CALIBRATED, HELD_OUT = 128, 32  # images
_MIN_IMAGES = 5  # four to calibrate with, one to measure on
_MIN_SPREAD = 0.03  # standard deviation of a map with content; photos have .3, plain images 0
_SCENES = 8  # synthetic images for calibration
_MAX_BIAS = 32  # a larger one means a constant beside which 8 bits leave too few levels
_PASSING = ("Relu", "MaxPool", "Resize", "Concat")  # pass their input values on


Report = Callable[[str], object]


def silent(step: str) -> None:
    """Report nothing."""


class Maps(Protocol):
    """Anything that computes maps of prepared images, such as a :class:`Predictor`."""

    precision: str

    def probabilities(self, images: Tensor) -> Tensor:
        """N×3×H×W uint8 on the CPU to N×out_ch×H×W; raises if maps are not finite."""


class Loss(NamedTuple):
    """How far the quantised network's maps are from the float32 network's, on held-out images whose
    maps vary: on others, any file would pass."""

    mean: float  # absolute difference of a pixel's probability
    worst: float  # the same, for the worst image
    calibrated: int  # images
    measured: int  # images


def export_int8(
    model: Network,
    path: str | Path,
    calibrate: str | Path,
    allow_loss: float = LIMIT,
    static: bool = False,
    opset: int | None = None,
    report: Report = silent,
) -> Loss:
    """Write a network to one ``.onnx`` file that computes in integers. Takes minutes.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed.
        path: the output file; not written if the loss is larger than allowed.
        calibrate: a folder of images like those that the network will see; at most 160, evenly
            spaced by name, are used: four of five to calibrate the ranges, the fifth to measure.
            A few synthetic scenes widen the ranges, for what the images lack.
        allow_loss: the largest mean absolute difference of the maps allowed, in 0 … 1.
        static, opset: see :func:`~.onnx.export_onnx`; the opset is at least 13.
        report: gets a line as each step begins.

    Returns:
        The loss of the file, measured on the held-out images.

    Raises:
        UserError: a package is missing, the folder holds too few images or one that cannot be
            read, a map is not finite, hardly any map has content, or the loss is larger than
            allowed.

    Example:
        >>> from src import load_model
        >>> export_int8(load_model("lite.pt"), "lite_int8.onnx", "photos").mean  # doctest: +SKIP
        0.0021
    """

    def quantise(quantised: Path, inputs: "CalibrationInputs") -> Predictor:
        floats = quantised.with_stem("float")
        report("writing it as ONNX in float32")
        try:
            export_onnx(model, floats, static=static, opset=opset)
        except UserError as error:  # about a temporary file
            message = error.args[0].replace(str(floats), str(path))
            raise UserError(message, error.parameter, error.value, error.advice) from None
        report(f"calibrating with {counted(inputs.count, 'image')}")
        _quantise(floats, quantised, inputs)
        return Predictor(quantised)

    check_opset(opset, integers=True)
    images = choose_images(calibrate)
    require_onnx()  # fail before anything takes time
    return measure_int8(model, path, images, allow_loss, quantise, report)


def measure_int8(
    model: Network,
    path: str | Path,
    images: Sequence[Path],
    allow_loss: float,
    quantise: Callable[[Path, "CalibrationInputs"], Maps],
    report: Report,
) -> Loss:
    """Write the file that ``quantise`` makes, if its maps are close to the float32 network's.

    Args:
        model, path, allow_loss, report: see :func:`export_int8`.
        images: of :func:`choose_images`.
        quantise: writes the file to a path, calibrated with these inputs, and returns an object
            that computes its maps.

    Returns, Raises: see :func:`export_int8`.
    """
    predictor = Predictor(model, device="cpu", amp="off")
    report(f"computing maps to compare with, of every fifth of {len(images)} images")
    held_out = _hold_out(predictor, images)
    calibration = [image for image in images if image not in held_out]
    with tempfile.TemporaryDirectory() as temporary, atomic_path(path) as target:
        quantised = Path(temporary) / f"int8{Path(path).suffix}"
        integers = quantise(quantised, CalibrationInputs(predictor, calibration))
        report(f"measuring on {counted(len(held_out), 'image')}")
        losses = [
            float((_predict(integers, predictor, image) - maps).abs().mean())
            for image, maps in held_out.items()
        ]
        loss = Loss(float(np.mean(losses)), max(losses), len(calibration), len(held_out))
        if not loss.mean <= allow_loss:  # false for NaN
            raise UserError(
                f"{path} is not written, as maps of {counted(loss.measured, 'image')} held out "
                f"change by {loss.mean:.4f} in the mean; {loss.mean * 1.1:.2g} would allow it",
                "allow_loss",
                allow_loss,
            )
        target.write_bytes(quantised.read_bytes())
    return loss


def choose_images(folder: str | Path) -> list[Path]:
    """The images of a folder for calibration and measurement: at most 160, all different.

    Raises:
        UserError: there is no such folder, or it holds too few.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such folder", "calibrate", folder)
    found = list_images(folder)
    if len(found) < _MIN_IMAGES:
        below = next((path for path in sorted(folder.iterdir()) if path.is_dir()), None)
        raise UserError(
            f"holds {counted(len(found), 'image')}; expected at least {_MIN_IMAGES}, better "
            f"{CALIBRATED + HELD_OUT}",
            "calibrate",
            folder,
            f"name the folder that holds them, such as {below}" if below and not found else None,
        )
    count = min(len(found), CALIBRATED + HELD_OUT)
    chosen = [found[i * len(found) // count] for i in range(count)]
    distinct = {sha256(path.read_bytes()).digest(): path for path in reversed(chosen)}
    if len(distinct) < _MIN_IMAGES:
        raise UserError(
            f"holds copies: {len(distinct)} of {count} images differ; expected at least "
            f"{_MIN_IMAGES} different ones",
            "calibrate",
            folder,
        )
    return sorted(distinct.values())


def _hold_out(predictor: Predictor, images: Sequence[Path]) -> dict[Path, Tensor]:
    """Every fifth image and its maps; one whose maps are constant is replaced by another.

    Raises:
        UserError: hardly any image has maps that vary.
    """
    wanted = images[2::5]
    found: dict[Path, Tensor] = {}
    for image in [*wanted, *(image for image in images if image not in wanted)]:
        maps = _predict(predictor, predictor, image)
        if maps.flatten(2).std(2).max() >= _MIN_SPREAD:
            found[image] = maps
        if len(found) == len(wanted):
            return found
    if 4 * len(found) < len(wanted) or not found:
        raise UserError(
            f"the network finds objects in {len(found)} of its {len(images)} images; nothing can "
            "be measured on uniform maps: give images like those it will be used on",
            "calibrate",
            images[0].parent,
        )
    return found


def _predict(predictor: Maps, exact: Predictor, image: Path) -> Tensor:
    """All maps of an image, prepared as for the float32 network."""
    prepared = exact.prepare(open_image(image))[None]
    try:
        return predictor.probabilities(prepared)
    except UserError as error:  # values that are not finite
        raise UserError(f"{image}: in {predictor.precision}, {error}") from None


def _quantise(floats: Path, quantised: Path, inputs: "CalibrationInputs") -> None:
    """Quantise weights to int8 per output channel, activations to uint8 over their whole range.

    Weights use 7 of their 8 bits: processors without VNNI add two 8-bit products in 16 bits, which
    would overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    file = onnx.load(floats)
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preparation that changes nothing here
    try:
        quantize_static(
            file,
            quantised,
            inputs,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv", "Add", *_PASSING],
            nodes_to_exclude=sorted(_find_float_nodes(file.graph, onnx.numpy_helper.to_array)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
    finally:
        logging.disable(disabled)
    file = onnx.load(quantised)
    file.ir_version = min(file.ir_version, IR_VERSION)
    onnx.helper.set_model_props(file, metadata)  # drops what quantize_static has added
    onnx.save(file, quantised)


def _find_float_nodes(graph: Any, to_array: Any) -> set[str]:
    """The names of the nodes that stay in float32: convolutions with a large constant, and the
    nodes between them. The published lite weights have one of 226 in a channel: in 8 bits, the
    channel's other values would be lost in steps of almost 1.
    """
    values = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.output[0]: node for node in graph.node}
    convs = [node for node in graph.node if node.op_type == "Conv" and len(node.input) > 2]
    found = {c.name for c in convs if np.abs(to_array(values[c.input[2]])).max() > _MAX_BIAS}
    for node in graph.node:  # in execution order
        before = {nodes[name].name for name in node.input if name in nodes}
        if node.op_type in _PASSING and found & before:
            found.add(node.name)
    return found


def make_scene(seed: int, size: int = 256) -> Image.Image:
    """A synthetic image: a coloured ellipse on another colour, both with noise at several scales.

    Its values vary like those of photos. Ranges calibrated on plain or similar images would clip
    those of all others: the maps of photos would be .12 off, instead of .003.

    Args:
        seed: of the random numbers.
        size: side in pixels.

    Returns:
        RGB, always the same for a seed.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(*scales: tuple[int, float]) -> Tensor:
        grids = [(torch.randn(1, 3, n, n, generator=generator), amount) for n, amount in scales]
        return sum(  # type: ignore[return-value]
            amount * F.interpolate(grid, (size, size), mode="bicubic")[0] for grid, amount in grids
        )

    background, colour = 255 * torch.rand(2, 3, 1, 1, generator=generator)
    background = background + noise((3, 60), (9, 30), (40, 20), (size, 8))
    colour = colour + noise((4, 40), (20, 20))
    y, x, height, width = torch.rand(4, generator=generator)
    line = torch.linspace(-1, 1, size)
    inside = ((line[:, None] - y + 0.5) / (0.25 + 0.4 * height)) ** 2
    inside = inside + ((line - x + 0.5) / (0.25 + 0.4 * width)) ** 2 < 1
    levels = torch.where(inside, colour, background).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


class CalibrationInputs:
    """Prepared images and synthetic ones, as onnxruntime's ``CalibrationDataReader``."""

    def __init__(self, predictor: Predictor, images: Sequence[Path]) -> None:
        self.predictor, self.count = predictor, len(images)
        self.remaining: Iterator[Path | int] = chain(images, range(_SCENES))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image, None after the last."""
        if (image := next(self.remaining, None)) is None:
            return None
        opened = make_scene(image) if isinstance(image, int) else open_image(image)
        prepared = self.predictor.prepare(opened)[None]
        x = self.predictor.preset.normalize(prepared, torch.float32, self.predictor.model.config)
        return {"images": x.contiguous().numpy()}
