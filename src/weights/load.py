"""A network from a weights file of any kind: those of ``storage.py`` and ONNX, in any layout of
``layouts.py``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..networks.base import Network
from ..networks.registry import build_model
from .layouts import recognise
from .onnx import check_onnx, read_onnx
from .storage import is_state, load_state, read_file, save_model

__all__ = ["SHIPPED", "load_model", "save_model"]

SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "u2net_lite.safetensors"
"""The weights that scripts use by default; ``weights/README.md`` says how they were made."""


def load_model(path: str | Path) -> Network:
    """Build the network of a weights file.

    Args:
        path: a checkpoint or weights of this toolkit, a folder of ``save_pretrained``, a file in
            the official U-2-Net layout, or an ``.onnx`` file of a U²-Net.

    Returns:
        The network on the CPU, in eval mode; ``origin`` says what kind of weights it has, and
        ``img_size`` the size in pixels that it was trained at.

    Raises:
        UserError: the file is missing, truncated, unsafe to read, or fits no known network.

    Example:
        >>> net = load_model("runs/lite/best.pt")  # doctest: +SKIP
    """
    if Path(path).suffix.lower() == ".onnx":
        return _load_onnx(path)
    content = read_file(path)
    config: Any
    if isinstance(content.get("model"), Mapping) and isinstance(content.get("config"), Mapping):
        # A checkpoint with an exponential moving average was scored by it.
        config, state = dict(content["config"]), content.get("ema")
        state = content["model"] if state is None else state
        kind = "folder of save_pretrained" if Path(path).is_dir() else "checkpoint of this toolkit"
        if not is_state(state):
            raise UserError(f"{path}: its weights are not tensors by name")
    else:
        kind, config, state = recognise(content, path)
    model = _build(config, path)
    model.img_size = content.get("img_size", model.img_size)
    load_state(model, state, path)
    return _finish(model, kind)


def _load_onnx(path: str | Path) -> Network:
    config, state, img_size = read_onnx(path)
    model = _build(config, path)
    model.img_size = img_size
    load_state(model, state, path)
    check_onnx(model, path)
    return _finish(model, "ONNX file")


def _build(config: Any, path: str | Path) -> Network:
    """The network without memory for its weights, so that a huge table costs nothing before the
    file's tensors are found to fit it."""
    try:
        with torch.device("meta"):
            return build_model(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _finish(model: Network, kind: str) -> Network:
    maps = "1 map" if model.config.out_ch == 1 else f"{model.config.out_ch} maps"
    model.origin = f"{kind}, {model.config.name}, {maps}"
    return model.eval()
