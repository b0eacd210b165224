"""Export to the ONNX file that transformers.js loads, in browsers and in Node.js."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UserError
from ...files import atomic_path
from ...inference.predictor import Predictor
from ...networks.base import Network
from ...words import counted
from ..common import ExportedNetwork, converter_quiet
from ..onnx import downgrade, name_axes, require_onnx

_TOLERANCE = 1  # levels of 255: rounding may fall to either side
_OPSET = 18  # the oldest whose Resize has antialias
_CHECKED = ((331, 450), (96, 65))  # heights and widths: larger and smaller than a network's input


def export_whole(model: Network, path: Path) -> None:
    """Write a graph from a whole image to its mask, and compare its masks with ours.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed.
        path: the output file; not written if the check fails.

    Raises:
        UserError: the network does not give one map of RGB images, a package is missing, or the
            file's masks differ from the network's.
    """
    if model.config.object_map is None or model.config.in_ch != 3:
        raise UserError(
            f"{path}: transformers.js takes a network of RGB images and one map of the object; "
            f"{model.config.name} has {counted(model.config.in_ch, 'channel')} and "
            f"{counted(model.config.out_ch, 'map')}"
        )
    onnx, onnxruntime = require_onnx()
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with converter_quiet():
        program = torch.onnx.export(
            _Whole(model).eval(),
            (torch.zeros(1, 3, *_CHECKED[0]),),
            input_names=["pixel_values"],
            output_names=["mask"],
            dynamic_shapes={"pixel_values": free},
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None  # it is None only without dynamo
    proto = downgrade(program.model_proto, _OPSET)
    for node in proto.graph.node:
        del node.metadata_props[:]  # stack traces, with paths of this machine
    name_axes(proto, {2: "height", 3: "width"})
    with atomic_path(path) as temporary:
        onnx.save(proto, temporary)
        onnx.checker.check_model(temporary, full_check=True)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        _check(model, session, path)


class _Whole(nn.Module):
    """From a whole image, 1×3×H×W from 0 to 255, to its mask, 1×1×H×W in [0, 1].

    Both resizes are in the graph: transformers.js leaves them to a canvas in browsers and to
    another library in Node.js, which filter differently.
    """

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.network = ExportedNetwork(model, sides=False)
        self.size = model.img_size
        config = model.config
        self.channel = config.object_map or 0
        self.mean, self.std = (
            torch.tensor(values).view(3, 1, 1) for values in (model.config.mean, model.config.std)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        height, width = pixel_values.shape[2:]
        x = (pixel_values @ _weigh(width, self.size).T + 0.5).floor().clamp(max=255)
        x = (_weigh(height, self.size) @ x + 0.5).floor().clamp(max=255)
        (maps,) = self.network((x / 255 - self.mean) / self.std)
        one = maps[:, self.channel : self.channel + 1]
        mask = F.interpolate(one, (height, width), mode="bilinear", antialias=True)
        # transformers.js truncates to 8 bits: half a level more makes it round. It would treat a
        # mask with values above 1 as logits.
        return (mask + 0.5 / 255).clamp(0, 1)


def _weigh(length: int, size: int) -> Tensor:
    """The weights, size×length, with which torch and Pillow resize bytes with antialias: they have
    15 bits, and each axis is rounded to bytes. One level of difference in some pixels of the image
    would become several in the mask.
    """
    places = torch.arange(length, dtype=torch.float64) + 0.5
    scale = (places[-1] + 0.5) / size
    centres = (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    weights = (1 - (places - centres).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True)
    bits = ((2**15 - 0.5) / weights.amax((0, 1))).log2().ceil() - 1
    unit = bits.clamp(max=22).exp2()
    return ((weights * unit + 0.5).floor() / unit).float()


def _check(model: Network, session: object, path: Path) -> None:
    """Compare the masks of smooth images, in levels, as transformers.js makes them."""
    predict = Predictor(model, device="cpu", amp="off")
    generator = torch.Generator().manual_seed(0)
    for size in _CHECKED:
        coarse = torch.rand(1, 3, 5, 5, generator=generator)
        image = F.interpolate(coarse, size, mode="bicubic").mul(255).clamp(0, 255).round()
        if model.jumps:  # on perfectly smooth inputs, which no image is
            image = (
                (image + 9 * torch.randn(image.shape, generator=generator)).clamp(0, 255).round()
            )
        (found,) = session.run(None, {"pixel_values": image.numpy()})  # type: ignore[attr-defined]
        expected = predict.predict_batch(image.to(torch.uint8)).mul(255).round()
        off = np.abs(np.floor(found[:, 0] * 255) - expected.numpy())
        worst = float(np.quantile(off, 0.99 if model.jumps else 1))
        if not worst <= _TOLERANCE:  # false for NaN
            raise UserError(f"{path}: not written: its masks differ by {worst:g} of 255 levels")
