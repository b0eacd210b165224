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
from .layouts import StateDict, recognise
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
    config: Any
    img_size: int | None  # None where the file does not say
    is_onnx = Path(path).suffix.lower() == ".onnx"
    if is_onnx:
        kind = "ONNX file"
        config, state, img_size = read_onnx(path)
    else:
        content = read_file(path)
        kind, config, state = _find_state(content, path)
        img_size = content.get("img_size")
    try:
        # Without memory for its weights: a huge table costs nothing before the file's tensors fit.
        with torch.device("meta"):
            model = build_model(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    model.img_size = img_size or model.img_size
    load_state(model, state, path)
    if is_onnx:
        check_onnx(model, path)
    maps = "1 map" if model.config.out_ch == 1 else f"{model.config.out_ch} maps"
    model.origin = f"{kind}, {model.config.name}, {maps}"
    return model.eval()


def _find_state(content: dict[str, Any], path: str | Path) -> tuple[str, Any, StateDict]:
    """What kind of weights these are, the table of their network, and its tensors."""
    if not all(isinstance(content.get(key), Mapping) for key in ("model", "config")):
        return recognise(content, path)
    # A checkpoint with an exponential moving average was scored by it.
    state = content["model"] if content.get("ema") is None else content["ema"]
    if not is_state(state):
        raise UserError(f"{path}: its weights are not tensors by name")
    kind = "folder of save_pretrained" if Path(path).is_dir() else "checkpoint of this toolkit"
    return kind, dict(content["config"]), state
