"""Runs the program of a Core ML package in torch, for machines without Core ML.

Each operator is that of Core ML's Model Intermediate Language (MIL), as Apple documents it. Only
those that this toolkit's networks need are implemented.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError

Run = Callable[[Tensor], list[np.ndarray]]


def run_package(path: Path, on_mac: bool) -> Run:
    """A function from an image 1×3×H×W to the maps that a package gives for it.

    Args:
        path: the package.
        on_mac: run Core ML itself.
    """
    import coremltools

    package = coremltools.models.MLModel(str(path), skip_model_load=not on_mac)
    spec = package.get_spec()
    names = [output.name for output in spec.description.output]
    if on_mac:
        return lambda x: [package.predict({"images": x.numpy()})[name] for name in names]
    from coremltools.converters.mil.frontend.milproto.load import load

    program = load(spec, spec.specificationVersion, package.weights_dir)
    function = program.functions["main"]
    return lambda x: _run(function, x, names)


@torch.inference_mode()
def _run(function: Any, image: Tensor, names: list[str]) -> list[np.ndarray]:
    values: dict[str, Tensor] = dict.fromkeys(function.inputs, image)
    for op in function.operations:
        if op.op_type == "const":
            continue
        if op.op_type not in _OPERATORS:
            raise UserError(f"the package's operator {op.op_type} cannot be computed here")

        def read(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [read(one) for one in value]
            return values.get(value.name, value.val)

        inputs = {name: read(value) for name, value in op.inputs.items() if value is not None}
        values[op.outputs[0].name] = _OPERATORS[op.op_type](**inputs)
    return [values[name].float().numpy() for name in names]


def _conv(
    x: Tensor, weight: Any, strides: Any, pad_type: str, pad: Any, dilations: Any, groups: Any,
    bias: Any = None,
) -> Tensor:  # fmt: skip
    if pad_type == "custom":  # top, bottom, left, right
        top, bottom, left, right = (int(n) for n in pad)
        x = F.pad(x, (left, right, top, bottom))
    elif pad_type != "valid":
        raise UserError(f"the package's padding {pad_type} cannot be computed here")
    weight, bias = (None if v is None else torch.as_tensor(v).to(x.dtype) for v in (weight, bias))
    pairs = [[int(n) for n in numbers] for numbers in (strides, dilations)]
    return F.conv2d(x, weight, bias, pairs[0], 0, pairs[1], int(groups))


def _max_pool(
    x: Tensor, kernel_sizes: Any, strides: Any, pad_type: str, pad: Any, ceil_mode: Any
) -> Tensor:
    if pad_type not in ("custom", "valid") or np.any(pad):
        raise UserError(f"the package's padding {pad_type} cannot be computed here")
    kernel, step = (tuple(int(n) for n in numbers) for numbers in (kernel_sizes, strides))
    return F.max_pool2d(x, kernel, step, ceil_mode=bool(ceil_mode))


def _upsample_bilinear(
    x: Tensor, scale_factor_height: Any, scale_factor_width: Any, align_corners: Any
) -> Tensor:
    scales = (float(scale_factor_height), float(scale_factor_width))
    size = [int(n * scale) for n, scale in zip(x.shape[2:], scales, strict=True)]
    return F.interpolate(x, size, mode="bilinear", align_corners=bool(align_corners))


def _cast(x: Tensor, dtype: str) -> Tensor:
    return x.to({"fp16": torch.float16, "fp32": torch.float32}[dtype])


def _concat(values: list[Tensor], axis: Any, interleave: Any = False) -> Tensor:
    if interleave:
        raise UserError("the package's interleaved concat cannot be computed here")
    return torch.cat(values, int(axis))


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "add": lambda x, y: torch.as_tensor(x) + torch.as_tensor(y),
    "cast": _cast,
    "concat": _concat,
    "conv": _conv,
    "identity": lambda x: x,
    "max_pool": _max_pool,
    "relu": lambda x: torch.relu(x),
    "sigmoid": lambda x: torch.sigmoid(x),
    "softmax": lambda x, axis: torch.softmax(x, int(axis)),
    "upsample_bilinear": _upsample_bilinear,
}
