"""Common parts of all exports: the network in exportable form, its metadata, the check."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compat import allow_even_sizes
from ..errors import UserError
from ..inference.sizes import InputSize, parse_size
from ..networks.base import Network

TOLERANCE = 1e-4  # largest difference of a probability from the network's own, in float32
PHONE_TOLERANCE = 1e-3  # the same, for files for phones
HALF_TOLERANCE = 0.02  # with 16-bit weights and arithmetic

Shape = tuple[int, int, int]  # batch, height, width
_CHECKED: tuple[Shape, ...] = ((1, 320, 320), (2, 96, 64), (3, 61, 93))


class ExportedNetwork(nn.Module):
    """A copy of a network that returns a tuple of probabilities: its output, then the side maps.

    Args:
        model: a network of :func:`build_model`, not fused; it is not changed.
        sides: return the side maps too.
        dtype: of weights and arithmetic; input and outputs are float32.
    """

    def __init__(self, model: Network, sides: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = model.plain().cpu()
        self.network.fuse().requires_grad_(False).to(dtype)
        self.count = None if sides else 1
        self.dtype = dtype

    # The argument's name becomes the input's name in the files.
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        logits = self.network.logits(images.to(self.dtype))[: self.count]
        return tuple(self.network.probabilities(x) for x in logits)


def describe_network(model: Network) -> dict[str, Any]:
    """The metadata of an exported file: the network and its preprocessing."""
    try:
        version = metadata.version("u2net-toolkit")
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        version = "clone"
    square = model.img_size
    size = parse_size(model.input_size, square)
    resized, kept = f"{size.width}x{size.height}", "not kept"
    if size.auto:
        resized, kept = f"about the area of {resized}, sides multiples of 32", "kept"
    about = {
        "network": model.config.name,
        "config": model.config.to_dict(),
        "img_size": square,
        "object_map": model.config.object_map,
        "mean": list(model.config.mean),
        "std": list(model.config.std),
        "resampling": "bilinear",
        "antialias": True,
        "input": f"RGB, resized to {resized} by bilinear interpolation with antialias (aspect "
        f"ratio {kept}), divided by 255, minus mean, divided by std",
        "output": "probabilities from 0 to 1; resize them back to the image's size bilinearly",
        "version": version,
    }
    return about | ({"input_size": size.value} if model.input_size else {})


def to_json(about: Mapping[str, Any]) -> dict[str, str]:
    """Metadata for formats that hold only strings: a JSON string for each name."""
    return {name: json.dumps(value) for name, value in about.items()}


def fixed_shape(model: Network) -> Shape:
    """The batch, height and width of files with a fixed shape.

    Raises:
        UserError: the network's size depends on the image.
    """
    return shape_of(parse_size(model.input_size, model.img_size))


def shape_of(size: InputSize) -> Shape:
    """As :func:`fixed_shape`, for a size that is known before the network."""
    if size.auto:
        raise UserError("the file is for one size; give a side or WxH", "img_size", "auto")
    return 1, size.height, size.width


def trace(network: ExportedNetwork, shape: Shape | None = None) -> torch.export.ExportedProgram:
    """The ``torch.export`` program of a network.

    Args:
        network: what to export.
        shape: the batch, height and width that it takes; None leaves all three dynamic.
    """
    channels = network.network.config.in_ch
    if shape:
        return torch.export.export(network.eval(), (torch.zeros(shape[0], channels, *shape[1:]),))
    # A batch of 1 would become a constant. Sizes have no names, as ceil mode pooling turns them
    # into ranges that no name fits; and they are odd at every pooling, as inductor treats ceil mode
    # as floor mode if the example does not show the difference (a loaded program, once compiled,
    # would then be wrong for all other sizes).
    stride = getattr(network.network.config, "stride", 32)
    free = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, channels, 2 * stride + 1, 3 * stride + 1)
    shapes = {"images": {0: free, 2: free, 3: free}}
    program = torch.export.export(network.eval(), (example,), dynamic_shapes=shapes)
    allow_even_sizes(program)
    return program


@torch.no_grad()
def check_export(
    network: ExportedNetwork,
    run: Callable[[Tensor], Sequence[np.ndarray]],
    path: str | Path,
    tolerance: float = TOLERANCE,
    shapes: Sequence[Shape] = _CHECKED,
) -> float:
    """Compare an exported file with the network in float64, over several batches and sizes.

    In float64, as float32 rounds too; twice the network's own rounding error is allowed: the
    published lite weights hold constants beyond 1000, and are 9e-5 off in torch's own float32.

    Args:
        network: what was exported.
        run: computes the file's maps for a batch N×C×H×W.
        path: of the file, for messages.
        tolerance: the largest difference allowed for a probability.
        shapes: batches, heights and widths to compare at.

    Returns:
        The largest difference of a probability.

    Raises:
        UserError: the maps of the network or of the file are not finite, or differ.
    """
    exact = copy.deepcopy(network).double()
    exact.dtype = torch.float64
    jumps = network.network.jumps
    worst = rounding = 0.0
    for x in _make_images(network.network, shapes):
        for expected, eager, output in zip(exact(x), network(x), run(x), strict=True):
            if not (expected.isfinite().all() and eager.isfinite().all()):
                raise UserError(f"{path}: not written: the network's own maps are not finite")
            found = np.asarray(output)
            if found.shape != expected.shape:
                raise UserError(f"{path}: gives {found.shape}, expected {tuple(expected.shape)}")
            if not np.isfinite(found).all():
                raise UserError(f"{path}: not written: it gives maps that are not finite")
            rounding = max(rounding, float((eager - expected).abs().max()))
            difference = np.abs(found - expected.numpy())
            worst = max(worst, float(np.quantile(difference, 0.99 if jumps else 1)))
    limit = max(tolerance, 2 * rounding)
    if worst > limit:
        raise UserError(f"{path}: differs from the network by {worst:.2g}, more than {limit:.2g}")
    return worst


def _make_images(network: Network, shapes: Sequence[Shape]) -> Iterator[Tensor]:
    """Batches of random blobs: a trained network sees nothing in noise, and a 0 map proves
    nothing."""
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in shapes:
        coarse = 2 * torch.randn(batch, network.config.in_ch, 5, 5, generator=generator)
        x = F.interpolate(coarse, (height, width), mode="bicubic")
        if network.jumps:  # on perfectly smooth inputs, which no image is
            x += 0.2 * torch.randn(x.shape, generator=generator)
        yield x


@contextmanager
def converter_quiet() -> Iterator[None]:
    """Silence ``torch.onnx.export``: onnx_ir warns about max_unpool2d, torch 2.11 about its own
    code.
    """
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
