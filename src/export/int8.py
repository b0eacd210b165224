"""A network in 8-bit integers for CPUs, as an ONNX file of QuantizeLinear and DequantizeLinear: the
ranges of its values come from pictures, and what it costs is measured on others before it is kept.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_path
from ..inference.predictor import Predictor
from ..pictures.images import list_images, open_image
from .onnx import export_onnx

LIMIT = 0.01  # of Loss.mean, the most by which the MAE of maps as they are can change
CALIBRATED, HELD_OUT = 128, 32  # pictures
_HUGE = 32  # a bias beyond it stands for a constant of which 8 bits leave too little
_PASSING = ("Relu", "MaxPool", "Resize", "Concat")  # give on the values that come in
_LEAST = 5  # pictures: four to calibrate with, one to measure on


class Loss(NamedTuple):
    """How far the quantised network's maps are from the float32 network's, on pictures held out."""

    mean: float  # absolute difference of a pixel's probability
    worst: float  # the same, of the worst picture
    calibrated: int  # pictures
    measured: int  # pictures


def export_int8(
    model: nn.Module, path: str | Path, folder: str | Path, limit: float = LIMIT
) -> Loss:
    """One ``.onnx`` file that computes in integers.

    Args:
        model: a network of :func:`build_model`, not fused; it stays as it is.
        path: where to write; nothing is left there if more is lost than the limit.
        folder: pictures such as it will see; at most 160, evenly spaced by name, are used: four of
            five to find the ranges of values, the fifth to measure.
        limit: how large the mean absolute difference of the maps may become.

    Raises:
        UserError: a package is missing, the folder holds too few pictures or one that cannot be
            read, or more is lost than the limit.
    """
    pictures = _spread(Path(folder))
    held_out = pictures[2::5]
    calibration = [picture for picture in pictures if picture not in held_out]
    predictor = Predictor(model, device="cpu", amp="off")
    with tempfile.TemporaryDirectory() as temporary, atomic_path(path) as target:
        plain = Path(temporary) / "float.onnx"
        quantised = Path(temporary) / "int8.onnx"
        export_onnx(model, plain)
        _quantise(plain, quantised, _Inputs(predictor, calibration))
        loss = _measure(predictor, Predictor(quantised), held_out, len(calibration))
        if not loss.mean <= limit:
            raise UserError(
                f"{path}: not written: maps of {loss.measured} pictures held out change by "
                f"{loss.mean:.4f} in the mean, more than {limit:g}; "
                f"--allow-loss {loss.mean * 1.1:.2g} would write it"
            )
        target.write_bytes(quantised.read_bytes())
    return loss


def _spread(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--calibrate {folder}: no such folder")
    found = list_images(folder)
    if len(found) < _LEAST:
        raise UserError(
            f"--calibrate {folder}: holds {len(found)} pictures; {_LEAST} are the least, "
            f"{CALIBRATED + HELD_OUT} enough"
        )
    count = min(len(found), CALIBRATED + HELD_OUT)
    return [found[i * len(found) // count] for i in range(count)]


def _quantise(plain: Path, quantised: Path, inputs: "_Inputs") -> None:
    """Weights int8 by output channel, values between layers uint8, ranges from least to most.

    Weights take 7 of their 8 bits: processors without VNNI add two products of 8 bits up in 16,
    where they would be cut off.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    file = onnx.load(plain)
    about = {entry.key: entry.value for entry in file.metadata_props}
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it asks for a preparation that changes nothing here
    try:
        quantize_static(
            file,
            quantised,
            inputs,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=["Conv", "Add", *_PASSING],
            nodes_to_exclude=sorted(_in_floats(file.graph, onnx.numpy_helper.to_array)),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
    finally:
        logging.disable(before)
    file = onnx.load(quantised)
    onnx.helper.set_model_props(file, about)  # without what the tool has added
    onnx.save(file, quantised)


def _in_floats(graph: Any, to_array: Any) -> set[str]:
    """The names of the nodes that stay in float32: convolutions with a large constant, and what
    lies between them. The published lite weights carry one of 226 in a channel: in 8 bits, what the
    channel tells beside it would drown in steps of almost 1.
    """
    values = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.output[0]: node for node in graph.node}
    convs = [node for node in graph.node if node.op_type == "Conv" and len(node.input) > 2]
    found = {c.name for c in convs if np.abs(to_array(values[c.input[2]])).max() > _HUGE}
    for node in graph.node:  # in the order in which they run
        before = {nodes[name].name for name in node.input if name in nodes}
        if node.op_type in _PASSING and found & before:
            found.add(node.name)
    return found


class _Inputs:
    """Prepared pictures, as onnxruntime's calibration asks for them."""

    def __init__(self, predictor: Predictor, pictures: Sequence[Path]) -> None:
        self.predictor = predictor
        self.left = iter(pictures)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next picture, None after the last."""
        if (picture := next(self.left, None)) is None:
            return None
        prepared = self.predictor.prepare(open_image(picture))[None]
        x = self.predictor.preset.normalize(prepared, torch.float32)
        return {"pictures": x.contiguous().numpy()}


def _measure(
    exact: Predictor, quantised: Predictor, pictures: Sequence[Path], calibrated: int
) -> Loss:
    each = []
    for picture in pictures:
        prepared: Tensor = exact.prepare(open_image(picture))[None]
        off = exact.probabilities(prepared) - quantised.probabilities(prepared)
        each.append(float(off.abs().mean()))
    return Loss(float(np.mean(each)), max(each), calibrated, len(each))
