"""Export to ONNX files, checked before they are kept.

The file takes a float32 input N×3×H×W of any batch and size from 32², prepared as its metadata
say, and returns the output map as probabilities N×out_ch×H×W first. It is written in the oldest
version of ONNX that can express the network, as a runtime rejects files newer than itself.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import UserError
from ..files import atomic_path
from ..networks.base import Network
from .common import (
    HALF_TOLERANCE,
    TOLERANCE,
    ExportedNetwork,
    check_export,
    converter_quiet,
    describe_network,
    fixed_shape,
    to_json,
    trace,
)

IR_VERSION = 8  # of the file format: ONNX 1.10, ONNX Runtime 1.9
OPSET = 15  # of the operators: the same releases
_TRACED_OPSET = 18  # the oldest that torch's exporter writes
_RESIZE_OPSET = 11  # the oldest whose Resize has half-pixel centres, as networks do
_QUANTIZE_OPSET = 13  # the oldest whose QuantizeLinear has a scale for each output channel
# Operators whose definitions of opsets 11 to 14 differ in nothing but the types that they take, all
# of them floats; ONNX's own converter cannot downgrade some.
_SAME = {"Add", "Cast", "Concat", "Constant", "Conv", "Div", "Gather", "Identity", "MaxPool", "Mul"}
_SAME |= {"Relu", "Reshape", "Resize", "Shape", "Sigmoid", "Slice", "Sub"}
_AXES = {0: "batch", 2: "height", 3: "width"}


def export_onnx(
    model: Network,
    path: str | Path,
    sides: bool = False,
    half: bool = False,
    half_weights: bool = False,
    static: bool = False,
    opset: int | None = None,
) -> float:
    """Write a network to one ``.onnx`` file.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed.
        path: the output file; not written if the check fails.
        sides: return the side maps too, after the output map.
        half: weights and arithmetic in float16, input and outputs still in float32.
        half_weights: only weights in float16; runtimes widen them once, when they load the file.
        static: a batch of 1 and one size, ``img_size`` or ``input_size`` of the network, written
            into the graph, for runtimes without dynamic shapes (OpenCV's dnn, TensorRT's older
            parsers, NPUs).
        opset: the version of ONNX's operators; None for the oldest from 15 on that can express the
            network.

    Returns:
        The largest difference of a probability from the network's own that the check found.

    Raises:
        UserError: a package is missing, the opset cannot express the network, or the file's maps
            differ from the network's.

    Example:
        >>> from src import load_model
        >>> export_onnx(load_model("lite.pt"), "lite.onnx")  # doctest: +SKIP
        2e-06
    """
    check_opset(opset)
    shape = fixed_shape(model) if static else None
    onnx, onnxruntime = require_onnx()
    network = ExportedNetwork(model, sides)
    traced = trace(ExportedNetwork(model, sides, torch.float16) if half else network, shape)
    with converter_quiet():
        program = torch.onnx.export(traced, dynamo=True, verbose=False, opset_version=_TRACED_OPSET)
    assert program is not None  # it is None only without dynamo
    for i, value in enumerate(program.model.graph.outputs):
        value.name = model.map_names[i] if i else "saliency"
    program.model.graph.inputs[0].name = "images"
    proto = downgrade(program.model_proto, opset or OPSET)
    if opset:
        proto = _convert_exactly(proto, opset, static)
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of this machine
    if not static:
        name_axes(proto, _AXES)
    if half_weights:
        _halve_weights(proto)
    onnx.helper.set_model_props(proto, to_json(describe_network(model)))
    with atomic_path(path) as temporary:
        onnx.save(proto, temporary)
        onnx.checker.check_model(temporary, full_check=True)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        return check_export(
            network,
            lambda x: session.run(None, {"images": x.numpy()}),
            path,
            HALF_TOLERANCE if half or half_weights else TOLERANCE,
            **({"shapes": [shape] * 2} if shape else {}),  # two different images
        )


def check_opset(opset: int | None, integers: bool = False) -> None:
    """Check that files can be written in this opset; None for the default.

    Args:
        opset: the version.
        integers: the file computes in integers.

    Raises:
        UserError: they cannot, or ``onnx`` is missing.
    """
    if opset is None:
        return
    try:
        from onnx import defs
    except ImportError as error:
        raise UserError(_needs(error)) from None

    newest = defs.onnx_opset_version()
    if not _RESIZE_OPSET <= opset <= newest:
        raise UserError(f"must be from {_RESIZE_OPSET} to {newest}", "opset", opset)
    if integers and opset < _QUANTIZE_OPSET:
        reason = f"cannot quantise per output channel; expected at least {_QUANTIZE_OPSET}"
        raise UserError(reason, "opset", opset)


def require_onnx() -> tuple[ModuleType, ModuleType]:
    """The modules ``onnx`` and ``onnxruntime``; checks that ``onnxscript`` is installed too.

    Raises:
        UserError: a package is not installed.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise UserError(_needs(error)) from None
    return onnx, onnxruntime


def _needs(error: ImportError) -> str:
    return f"export to ONNX needs {error.name}: pip install onnx onnxruntime onnxscript"


def downgrade(proto: Any, opset: int = OPSET) -> Any:
    """Convert a ``ModelProto`` to the oldest ONNX version, from ``opset`` on, with its operators.

    The names that torch gives to sizes inside the graph (``s78``) are removed, as they mean
    nothing there.
    """
    from onnx import version_converter

    found = proto.opset_import[0].version
    for version in range(opset, found):
        try:
            proto = version_converter.convert_version(proto, version)
            break
        except RuntimeError:  # an operator is newer; there is no narrower class
            continue
    proto.ir_version = min(proto.ir_version, IR_VERSION)
    del proto.graph.value_info[:]
    return proto


def _convert_exactly(proto: Any, opset: int, static: bool) -> Any:
    """Convert a ``ModelProto`` from :func:`downgrade` to exactly this opset."""
    from onnx import helper, version_converter

    found = proto.opset_import[0].version
    if opset < found <= 14 and {node.op_type for node in proto.graph.node} <= _SAME:
        proto.opset_import[0].version = found = opset
        if opset < 13:
            _fill_resize(proto)
    if found > opset:
        reason = f"does not hold this network; {found} does"
        raise UserError(reason, "opset", opset, None if static else "{static} may help")
    if found < opset:
        proto = version_converter.convert_version(proto, opset)
    oldest = helper.find_min_ir_version_for(proto.opset_import)
    proto.ir_version = max(IR_VERSION, oldest) if opset > _TRACED_OPSET else IR_VERSION
    return proto


def _fill_resize(proto: Any) -> None:
    """Give ``Resize`` empty tensors for the inputs that are optional only from opset 13 on."""
    from onnx import TensorProto, helper

    empty = "empty"
    for node in proto.graph.node:
        if node.op_type == "Resize":
            node.input[1], node.input[2] = (name or empty for name in node.input[1:3])
    proto.graph.initializer.append(helper.make_tensor(empty, TensorProto.FLOAT, [0], []))


def name_axes(proto: Any, names: Mapping[int, str]) -> None:
    """Name the axes of a ``ModelProto``'s input and outputs, which torch only numbers."""
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in names.items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


def _halve_weights(proto: Any) -> None:
    """Store the weights of a ``ModelProto`` in float16, each followed by a cast to float32.

    Biases stay: they are few, and some exceed the range of float16.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
            name, values = tensor.name, numpy_helper.to_array(tensor).astype("float16")
            tensor.CopyFrom(numpy_helper.from_array(values, f"{name}_half"))
            casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
