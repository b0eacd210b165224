"""A network in 8-bit integers for CPUs, as an ONNX file of QuantizeLinear and DequantizeLinear: the
ranges of its values come from images, and the loss is measured on others before the file is kept.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path
from ..inference.predictor import Predictor
from ..networks.base import Network
from ..pictures.images import list_images, open_image
from .onnx import export_onnx

LIMIT = 0.01  # of Loss.mean, which bounds how much the MAE of the maps can change
CALIBRATED, HELD_OUT = 128, 32  # images
_MIN_IMAGES = 5  # four to calibrate with, one to measure on
_MAX_BIAS = 32  # a larger one stands for a constant beside which 8 bits leave too few levels
_PASSING = ("Relu", "MaxPool", "Resize", "Concat")  # pass on the values that come in


class Loss(NamedTuple):
    """How far the quantised network's maps are from the float32 network's, on held-out images."""

    mean: float  # absolute difference of a pixel's probability
    worst: float  # the same, of the worst image
    calibrated: int  # images
    measured: int  # images


def export_int8(
    model: Network, path: str | Path, calibrate: str | Path, allow_loss: float = LIMIT
) -> Loss:
    """Write a network to one ``.onnx`` file that computes in integers.

    Args:
        model: a network of :func:`build_model`, not fused; it stays as it is.
        path: where to write; nothing is left there if more is lost than allowed.
        calibrate: a folder of images such as the network will see; at most 160, evenly spaced by
            name, are used: four of five to find the ranges of values, the fifth to measure.
        allow_loss: how large the mean absolute difference of the maps may become, in 0 … 1.

    Returns:
        What the file loses, measured on the images held out.

    Raises:
        UserError: a package is missing, the folder holds too few images or one that cannot be
            read, a map is not finite, or more is lost than allowed.

    Example:
        >>> from src import load_model
        >>> export_int8(load_model("lite.pt"), "lite_int8.onnx", "photos").mean  # doctest: +SKIP
        0.0021
    """
    images = _choose_images(Path(calibrate))
    held_out = images[2::5]
    calibration = [image for image in images if image not in held_out]
    predictor = Predictor(model, device="cpu", amp="off")
    expected = [_predict(predictor, predictor, image) for image in held_out]
    with tempfile.TemporaryDirectory() as temporary, atomic_path(path) as target:
        floats = Path(temporary) / "float.onnx"
        quantised = Path(temporary) / "int8.onnx"
        try:
            export_onnx(model, floats)
        except UserError as error:  # about a file that the user knows nothing of
            raise UserError(str(error).replace(str(floats), str(path))) from None
        _quantise(floats, quantised, _Inputs(predictor, calibration))
        integers = Predictor(quantised)
        found = [_predict(integers, predictor, image) for image in held_out]
        losses = [float((a - b).abs().mean()) for a, b in zip(expected, found, strict=True)]
        loss = Loss(float(np.mean(losses)), max(losses), len(calibration), len(held_out))
        if not loss.mean <= allow_loss:  # NaN is not
            raise UserError(
                f"{path} is not written, as maps of {loss.measured} images held out change by "
                f"{loss.mean:.4f} in the mean; {loss.mean * 1.1:.2g} would allow it",
                "allow_loss",
                allow_loss,
            )
        target.write_bytes(quantised.read_bytes())
    return loss


def _choose_images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError("no such folder", "calibrate", folder)
    found = list_images(folder)
    if len(found) < _MIN_IMAGES:
        raise UserError(
            f"holds {len(found)} images; expected at least {_MIN_IMAGES}, better "
            f"{CALIBRATED + HELD_OUT}",
            "calibrate",
            folder,
        )
    count = min(len(found), CALIBRATED + HELD_OUT)
    return [found[i * len(found) // count] for i in range(count)]


def _predict(predictor: Predictor, exact: Predictor, image: Path) -> Tensor:
    """All maps of an image, prepared as the float32 network takes it."""
    prepared = exact.prepare(open_image(image))[None]
    try:
        return predictor.probabilities(prepared)
    except UserError as error:  # values that are not finite
        raise UserError(f"{image}: in {predictor.precision}, {error}") from None


def _quantise(floats: Path, quantised: Path, inputs: "_Inputs") -> None:
    """Weights int8 by output channel, values between layers uint8, over their whole range.

    Weights take 7 of their 8 bits: processors without VNNI add two products of 8 bits in 16, which
    would overflow.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    file = onnx.load(floats)
    metadata = {entry.key: entry.value for entry in file.metadata_props}
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it asks for a preparation that changes nothing here
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
    onnx.helper.set_model_props(file, metadata)  # drops what the tool has added
    onnx.save(file, quantised)


def _find_float_nodes(graph: Any, to_array: Any) -> set[str]:
    """The names of the nodes that stay in float32: convolutions with a large constant, and the
    nodes between them. The published lite weights carry one of 226 in a channel: in 8 bits, the
    rest of the channel's values would be lost in steps of almost 1.
    """
    values = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.output[0]: node for node in graph.node}
    convs = [node for node in graph.node if node.op_type == "Conv" and len(node.input) > 2]
    found = {c.name for c in convs if np.abs(to_array(values[c.input[2]])).max() > _MAX_BIAS}
    for node in graph.node:  # in the order in which they run
        before = {nodes[name].name for name in node.input if name in nodes}
        if node.op_type in _PASSING and found & before:
            found.add(node.name)
    return found


class _Inputs:
    """Prepared images, in the form of onnxruntime's ``CalibrationDataReader``."""

    def __init__(self, predictor: Predictor, images: Sequence[Path]) -> None:
        self.predictor = predictor
        self.remaining = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image, None after the last."""
        if (image := next(self.remaining, None)) is None:
            return None
        prepared = self.predictor.prepare(open_image(image))[None]
        x = self.predictor.preset.normalize(prepared, torch.float32)
        return {"pictures": x.contiguous().numpy()}
