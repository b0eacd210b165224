"""Read a U²-Net from an ``.onnx`` file: its convolutions are matched in the order in which they
run, which exporters keep, whatever they name the tensors; then file and network must give the same
map.
"""

import json
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..files import utf8_path
from ..networks.base import Network
from ..networks.config import MAX_SIZE, U2NetConfig
from ..networks.tables import FULL, ISNET, ISNET_LITE, LITE
from ..networks.u2net import ConvBNReLU, U2Net
from .faults import check_kind, explain, is_safetensors
from .layouts import StateDict

_EPS = 1e-5  # of our batch norms
_MAX_DIFFERENCE = 0.05  # of logits that span 1 or more
_ROUNDING = (1e-3, 0.02)  # of logits, in float32 and float16


class _Conv(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray | None
    norm: dict[str, np.ndarray] | None  # of a batch norm that follows and was not folded


def read_onnx(path: str | Path) -> tuple[U2NetConfig, StateDict, int]:
    """Read the weights of a U²-Net from an ONNX file.

    Returns:
        The table (the one in the file's metadata, which ``src/export`` writes; else full or lite,
        by the shapes), the tensors under our names, and the size that the network was trained at.

    Raises:
        UserError: a package is missing, the file is truncated, or its convolutions are not those
            of a U²-Net (the message gives their number, or the first one with another shape).
    """
    onnx = _import("onnx")
    graph, about = read_graph(path)
    if is_quantized(graph):
        raise UserError(
            f"{path}: quantised; predict.py and validation.py run it as it is, but weights are "
            "read only from the file that it was made from"
        )
    convs = list(_convolutions(graph, onnx.numpy_helper.to_array))
    if not convs:
        raise UserError(f"{path}: holds no convolution with readable weights")
    config = about.get("config") or _guess_table(convs)
    try:
        config = U2NetConfig.from_dict(config) if isinstance(config, dict) else config
    except UserError as error:
        raise UserError(
            f"{path}: its metadata has no table of a U²-Net ({error}), and .onnx files of other "
            "networks cannot be read"
        ) from None
    config = config.replace(conv_bias=True)
    return config, _state(config, convs, path), about.get("img_size", config.img_size)


def read_graph(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """The graph of an ONNX file, and the metadata that our exports write.

    Returns:
        The ``GraphProto``, and a dict that may hold ``config``, ``img_size`` and ``input_size``.

    Raises:
        UserError: a package is missing, or the file is truncated.
    """
    onnx = _import("onnx")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such weights file")
    check_kind(Path(path))
    if zipfile.is_zipfile(path) or is_safetensors(Path(path)):
        raise UserError(f"{path}: is a torch or safetensors file, not ONNX; give it that suffix")
    try:
        file = onnx.load(path)
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: its weights are in a file beside it that is missing ({error})"
        ) from None
    except Exception as error:  # protobuf's own
        reason = str(explain(Path(path))).removeprefix(f"{path}: ").replace("a weights", "an ONNX")
        raise UserError(f"{path}: {reason} ({str(error).splitlines()[0]})") from None
    return file.graph, _metadata(file)


def is_quantized(graph: Any) -> bool:
    """Whether a graph computes in integers, in any of ONNX's ways."""
    return any(
        "Quantize" in n.op_type or "Integer" in n.op_type or n.op_type.startswith("QLinear")
        for n in graph.node
    )


@torch.inference_mode()
def check_onnx(model: Network, path: str | Path) -> None:
    """Check that an ONNX file computes the same first map as the network read from it, as
    probabilities or as logits, so that no two convolutions can have been swapped.

    Raises:
        UserError: the maps differ, or onnxruntime is missing or cannot run the file.
    """
    model.eval()
    for image, found, half in _run_onnx(path, model.config.in_ch):
        logits = model.logits(image)[0]
        limits = 1e-4, 1 - 1e-4  # outside, a float32 probability does not determine its logit
        expected = model.probabilities(logits).clamp(*limits).logit()
        spread = float(expected.max() - expected.min())
        # If a map hardly varies, even a wrong one hardly differs from it.
        limit = max(_ROUNDING[half], _MAX_DIFFERENCE * min(1, spread))
        pairs = (found.clamp(*limits).logit(), expected), (found, logits)
        if found.shape != logits.shape or not any(
            (first - second).abs().max() <= limit for first, second in pairs
        ):
            raise UserError(
                f"{path}: has the convolutions of {model.config.name}, but computes another first "
                "map (another order of layers, or something after it?)"
            )
        if spread > 5 * limit:
            return
    raise UserError(
        f"{path}: its map is the same everywhere in every test image, so that it cannot be checked "
        "whether its convolutions were read in the right order"
    )


def _run_onnx(path: str | Path, channels: int) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Test images of a size that the file takes, its first outputs for them, and whether it
    computes in 16 bits. The images are smooth colours, stronger ones, and rectangles on a
    background, as a network may see nothing in one of them.
    """
    session = _open_session(path)
    inputs = session.get_inputs()
    if [len(entry.shape) for entry in inputs] != [4]:
        raise UserError(f"{path}: takes something else than one batch of images N×C×H×W")
    (entry,) = inputs
    batch, _, *size = entry.shape
    half = any(t.data_type == 10 for t in _import("onnx").load(path).graph.initializer)
    dtype = np.float16 if entry.type == "tensor(float16)" else np.float32
    generator = torch.Generator().manual_seed(0)
    batch = batch if isinstance(batch, int) else 1
    height, width = (n if isinstance(n, int) else 96 for n in size)
    coarse = 2 * torch.randn(batch, channels, 5, 5, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic")
    scene = 0.2 * smooth - 1
    scene[..., height // 4 : height // 2, width // 4 : width // 2] += 2
    for image in (smooth, 3 * smooth, scene, -scene):
        try:
            found = session.run(None, {entry.name: image.numpy().astype(dtype)})[0]
            found = found.astype(np.float32)
        except Exception as error:  # onnxruntime's own
            raise _cannot_run(path, error) from None
        yield image, torch.from_numpy(found), half


def _open_session(path: str | Path) -> Any:
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # errors are reported here
    try:
        with utf8_path(Path(path)) as readable:
            return runtime.InferenceSession(readable, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own
        raise _cannot_run(path, error) from None


def _cannot_run(path: str | Path, error: Exception) -> UserError:
    return UserError(f"{path}: onnxruntime cannot run it ({error})")


def _import(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise UserError(f"reading .onnx needs {package}: pip install onnx onnxruntime") from None


def _metadata(file: Any) -> dict[str, Any]:
    """The metadata of our own exports; other values under these names are ignored."""
    found: dict[str, Any] = {}
    for entry in file.metadata_props:
        kind = {"config": dict, "img_size": int, "input_size": str}.get(entry.key)
        with suppress(ValueError, RecursionError):
            if kind and type(value := json.loads(entry.value)) is kind:
                found[entry.key] = value
    if not 1 <= found.get("img_size", 1) <= MAX_SIZE:
        del found["img_size"]
    return found


def _convolutions(graph: Any, to_array: Any) -> Iterator[_Conv]:
    """The convolutions in the graph's order, which is the one in which they run."""
    values = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            values[node.output[0]] = to_array(node.attribute[0].t)
        elif node.op_type in ("Identity", "Cast") and node.input[0] in values:  # Cast: from float16
            values[node.output[0]] = values[node.input[0]]
    norms = {node.input[0]: node for node in graph.node if node.op_type == "BatchNormalization"}
    for node in graph.node:
        if node.op_type != "Conv" or node.input[1] not in values:
            continue
        bias = values.get(node.input[2]) if len(node.input) > 2 else None
        norm = None
        if after := norms.get(node.output[0]):
            fields = ("weight", "bias", "running_mean", "running_var")
            norm = {f: values[n] for f, n in zip(fields, after.input[1:], strict=True)}
            eps = next((a.f for a in after.attribute if a.name == "epsilon"), _EPS)
            norm["running_var"] = norm["running_var"] + (eps - _EPS)
        yield _Conv(values[node.input[1]], bias, norm)


def _guess_table(convs: list[_Conv]) -> U2NetConfig:
    """Full or lite, of U²-Net or of IS-Net, by the first convolutions; with the input channels of
    the first convolution and the output channels of the last."""
    first, second, third, *_ = [*(len(conv.weight) for conv in convs[:3]), 0, 1, 2]
    if second == LITE.encoder[0].mid_ch:
        table = LITE
    elif first != second:
        table = FULL
    else:  # a stem, then a block's first convolution, with as many channels
        table = ISNET_LITE if third == ISNET_LITE.encoder[0].mid_ch else ISNET
    maps = convs[-1].weight.shape[0]
    activation = "softmax" if maps > 1 else "sigmoid"
    return table.replace(in_ch=convs[0].weight.shape[1], out_ch=maps, activation=activation)


def _state(config: U2NetConfig, convs: list[_Conv], path: str | Path) -> StateDict:
    with torch.device("meta"):
        network = U2Net(config)
    modules = dict(network.named_modules())
    names = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    pruned = [] if config.fuse_sides else names[len(convs) :]
    if all(name.startswith("sides.") for name in pruned):  # it gives only the output map
        shapes = [tuple(modules[name].weight.shape) for name in pruned]
        convs = [*convs, *(_Conv(np.zeros(shape, np.float32), None, None) for shape in shapes)]
    if len(names) != len(convs):
        raise UserError(
            f"{path}: {len(convs)} convolutions, but {config.name}, which it looks most like, has "
            f"{len(names)}"
        )
    state: StateDict = {}
    for number, (name, conv) in enumerate(zip(names, convs, strict=True), 1):
        shape = tuple(modules[name].weight.shape)
        if conv.weight.shape != shape:
            raise UserError(
                f"{path}: looks most like {config.name}, but its convolution {number} is "
                f"{list(conv.weight.shape)}, expected {list(shape)} ({name})"
            )
        bias = np.zeros(shape[0], np.float32) if conv.bias is None else conv.bias
        state |= {f"{name}.weight": _tensor(conv.weight), f"{name}.bias": _tensor(bias)}
        block = name.rpartition(".")[0]
        if isinstance(modules.get(block), ConvBNReLU):
            state |= {f"{block}.bn.{k}": v for k, v in _norm(conv, shape[0]).items()}
    return state


def _norm(conv: _Conv, channels: int) -> StateDict:
    """The batch norm after a convolution; the identity if it was folded."""
    fields = conv.norm or {
        "weight": np.ones(channels, np.float32),
        "bias": np.zeros(channels, np.float32),
        "running_mean": np.zeros(channels, np.float32),
        "running_var": np.full(channels, 1 - _EPS, np.float32),
    }
    tensors = {name: _tensor(values) for name, values in fields.items()}
    return tensors | {"num_batches_tracked": torch.tensor(0)}


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))  # a copy: onnx's memory is not ours
