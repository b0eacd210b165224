"""Weights in and out: our checkpoints, safetensors, and the layouts of ``src/layouts.py``.

One format goes out: a plain dict with ``model`` and ``config`` (or safetensors with the config in
its metadata), enough to rebuild the network without being told which one it is.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from .errors import UserError
from .files import atomic_path, save_torch
from .layouts import StateDict, is_state, recognise
from .registry import build_model

SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "u2net_lite.safetensors"
"""What scripts use where no weights are named; ``weights/README.md`` tells how it was made."""

_KEPT = ("config", "img_size")  # beside the tensors, in a safetensors file's metadata


def save_model(model: nn.Module, path: str | Path, half: bool = False, **extra: Any) -> None:
    """Write weights and table; ``.safetensors`` by its suffix, else a torch file.

    Args:
        model: a network of :func:`build_model`, not fused.
        path: where to write; written whole or not at all.
        half: convolutions in 16 bits, for a file of half the size; loading widens them again.
        **extra: plain values kept beside (epoch, scores); torch files only.
    """
    if model.fused:
        raise UserError(f"{path}: the network is fused; save it before fuse()")
    state = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    if half:  # statistics of batch norm are few, and may exceed what 16 bits hold
        state = {name: t.half() if t.ndim > 1 else t for name, t in state.items()}
    about = {"config": model.config.to_dict(), "img_size": model.img_size}
    if Path(path).suffix != ".safetensors":
        save_torch({"model": state, **about, **extra}, path)
        return
    with atomic_path(path) as temporary:
        save_file(state, temporary, {key: json.dumps(value) for key, value in about.items()})


def load_model(path: str | Path) -> nn.Module:
    """Rebuild a network from any file this module reads, on the CPU, in eval mode.

    Raises:
        UserError: the file is missing, torn, unsafe to read, or fits no known network.

    Example:
        >>> net = load_model("runs/lite/best.pt")  # doctest: +SKIP
    """
    content = read_file(path)
    if isinstance(content.get("model"), Mapping) and isinstance(content.get("config"), Mapping):
        # A checkpoint with an exponential moving average was scored by it.
        config, state = dict(content["config"]), content.get("ema") or content["model"]
        kind = "checkpoint of this toolkit"
        if not is_state(state):
            raise UserError(f"{path}: its weights are no tensors by name")
    else:
        kind, config, state = recognise(content, path)
    try:
        model = build_model(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    model.img_size = content.get("img_size", model.img_size)
    load_state(model, state, path)
    maps = "1 map" if model.config.out_ch == 1 else f"{model.config.out_ch} maps"
    model.origin = f"{kind}, {model.config.name}, {maps}"
    return model.eval()


def load_state(model: nn.Module, state: StateDict, path: str | Path) -> None:
    """Load ``state`` (in our names), or say what is missing, left over or of another shape."""
    own = model.state_dict()
    faults = [f"missing {name}" for name in own if name not in state][:3]
    faults += [f"unexpected {name}" for name in state if name not in own][:3]
    faults += [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ][:3]
    if faults:
        raise UserError(
            f"{path}: looks most like {model.config.name}, but does not fit: {'; '.join(faults)}"
        )
    model.load_state_dict(state)


def read_file(path: str | Path) -> dict[str, Any]:
    """What a weights file holds, never running code from it."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = {k: json.loads(v) for k, v in (file.metadata() or {}).items() if k in _KEPT}
            return {"model": state, **about} if "config" in about else state
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a torn file makes torch raise nearly anything
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"{path}: refused, as it holds Python objects beside tensors, which may run code; "
                "ask its author for a plain state_dict"
            ) from None
        raise UserError(f"{path}: torn, or not a weights file") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a state_dict")
    return dict(content)
