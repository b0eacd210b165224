"""Weights to a network, without being told which one: any file of ``storage.py`` or ONNX, in any
layout of ``src/weights/layouts.py``.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..networks.registry import build_model
from .layouts import recognise
from .onnx import check_onnx, read_onnx
from .storage import is_state, load_state, read_file, save_model

__all__ = ["SHIPPED", "load_model", "save_model"]

SHIPPED = Path(__file__).resolve().parents[2] / "weights" / "u2net_lite.safetensors"
"""What scripts use where no weights are named; ``weights/README.md`` tells how it was made."""


def load_model(path: str | Path) -> nn.Module:
    """Rebuild a network from any file this module reads, on the CPU, in eval mode.

    Raises:
        UserError: the file is missing, torn, unsafe to read, or fits no known network.

    Example:
        >>> net = load_model("runs/lite/best.pt")  # doctest: +SKIP
    """
    if Path(path).suffix.lower() == ".onnx":
        return _load_onnx(path)
    content = read_file(path)
    if isinstance(content.get("model"), Mapping) and isinstance(content.get("config"), Mapping):
        # A checkpoint with an exponential moving average was scored by it.
        config, state = dict(content["config"]), content.get("ema")
        state = content["model"] if state is None else state
        kind = "folder of save_pretrained" if Path(path).is_dir() else "checkpoint of this toolkit"
        if not is_state(state):
            raise UserError(f"{path}: its weights are no tensors by name")
    else:
        kind, config, state = recognise(content, path)
    model = _build(config, path)
    model.img_size = content.get("img_size", model.img_size)
    load_state(model, state, path)
    return _ready(model, kind)


def _load_onnx(path: str | Path) -> nn.Module:
    config, state, img_size = read_onnx(path)
    model = _build(config, path)
    model.img_size = img_size
    load_state(model, state, path)
    check_onnx(model, path)
    return _ready(model, "ONNX file")


def _build(config: Any, path: str | Path) -> nn.Module:
    """The network without memory for its weights: whatever its table says, that costs nothing
    before the file's own tensors are found to fit."""
    try:
        with torch.device("meta"):
            return build_model(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _ready(model: nn.Module, kind: str) -> nn.Module:
    maps = "1 map" if model.config.out_ch == 1 else f"{model.config.out_ch} maps"
    model.origin = f"{kind}, {model.config.name}, {maps}"
    return model.eval()
