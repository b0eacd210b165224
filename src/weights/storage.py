"""Weights on disk as plain tensors, numbers and text: torch files, safetensors, folders of
``config.json`` and ``model.safetensors``. ``load.py`` makes networks of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path, save_json, save_torch
from ..networks.base import Network

FOLDER = ("config.json", "model.safetensors")  # as huggingface_hub names them
MAX_SIZE = 8192  # pixels a side that a file may give as the network's input
_KEPT = ("config", "img_size")  # in a safetensors file's metadata


def save_model(model: Network, path: str | Path, half: bool = False, **extra: Any) -> None:
    """Write a network's weights and table; ``.safetensors`` by the suffix, else a torch file.

    Args:
        model: a network of :func:`build_model`, not fused.
        path: where to write; written whole or not at all.
        half: convolutions in 16 bits, for a file of half the size; loading widens them again.
        **extra: plain values kept in the file too (epoch, scores); torch files only.

    Raises:
        UserError: the network is fused, or the file cannot be written.

    Example:
        >>> from src import u2net_lite
        >>> save_model(u2net_lite(), "lite.safetensors")  # doctest: +SKIP
    """
    if model.fused:
        raise UserError(f"{path}: the network is fused; save it before fuse()")
    save_state(model.plain_state(), path, half, _about(model), extra)


def save_state(
    state: Mapping[str, Tensor],
    path: str | Path,
    half: bool = False,
    about: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """As :func:`save_model`, of tensors by name.

    Args:
        state: the tensors.
        path: where to write.
        half: convolutions in 16 bits.
        about: table and size of the network; without it, the file holds the bare tensors.
        extra: plain values kept in the file too; torch files with ``about`` only.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if half:  # statistics of batch norm are few, and may exceed what 16 bits hold
        state = {name: t.half() if t.ndim > 1 else t for name, t in state.items()}
    if Path(path).suffix != ".safetensors":
        save_torch({"model": state, **about, **(extra or {})} if about else state, path)
        return
    with atomic_path(path) as temporary:
        try:
            save_file(state, temporary, {k: json.dumps(v) for k, v in (about or {}).items()})
        except SafetensorError as error:  # a full disk, for one
            raise UserError(f"{path}: cannot be written; is the disk full? ({error})") from None


def save_folder(model: Network, folder: str | Path) -> None:
    """``config.json`` (the table and the size trained at) and ``model.safetensors``."""
    about, weights = (Path(folder) / name for name in FOLDER)
    save_model(model, weights)
    save_json(_about(model), about)


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a weights file or a folder of :func:`save_folder`; never runs code from it.

    Returns:
        A state_dict, or a dict of ``model`` (the state_dict), ``config`` and more.

    Raises:
        UserError: the file is missing, truncated, or unsafe to read.
    """
    path = Path(path)
    if path.is_dir():
        return _checked(_read_folder(path), path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            state, about = _read_safetensors(path)
            content = {"model": state, **about} if "config" in about else state
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise UserError(f"{path}: cannot be read (no permission)") from None
    except Exception as error:  # a truncated file makes torch raise nearly anything
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"{path}: refused, as it holds Python objects beside tensors, which may run code; "
                "ask its author for a plain state_dict"
            ) from None
        raise UserError(f"{path}: truncated, or not a weights file") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a state_dict")
    return _checked(dict(content), path)


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    size = content.get("img_size", 320)
    if type(size) is not int or not 1 <= size <= MAX_SIZE:
        raise UserError(f"{path}: img_size is {size!r}, expected 1 to {MAX_SIZE} pixels")
    return content


def is_state(value: Any) -> bool:
    """Whether ``value`` is a dict of tensors by name, all of them dense and in memory."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        for name, tensor in value.items()
    )


def load_state(model: Network, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load tensors under our names into a network, which may be on torch's device ``meta``.

    Args:
        model: the network.
        state: its tensors.
        path: of the file that they come from, for messages.

    Raises:
        UserError: a tensor is missing, unexpected, of another shape or type, or not finite.
    """
    _check_fit(model, state, path)
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} contains NaN or Inf; its training has diverged")
    own = model.state_dict()
    on_meta = any(tensor.is_meta for tensor in own.values())
    if on_meta:  # to_empty would import sympy; copies, as tensors of a file may share memory
        state = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in state.items()}
    model.load_state_dict(state, assign=on_meta)


def _check_fit(model: Network, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Compare names, shapes and types; the message names three faults of each kind at most."""
    own = model.state_dict()
    faults = [f"missing {name}" for name in own if name not in state][:3]
    faults += [f"unexpected {name}" for name in state if name not in own][:3]
    faults += [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ][:3]
    faults += [
        f"{name} holds {tensor.dtype}"
        for name, tensor in state.items()
        if name in own and tensor.is_floating_point() != own[name].is_floating_point()
    ][:3]
    if faults:
        raise UserError(
            f"{path}: looks most like {model.config.name}, but does not fit: {'; '.join(faults)}"
        )


def _about(model: Network) -> dict[str, Any]:
    return {"config": model.config.to_dict(), "img_size": model.img_size}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return state, {k: json.loads(v) for k, v in (file.metadata() or {}).items() if k in _KEPT}


def _read_folder(folder: Path) -> dict[str, Any]:
    about, weights = (folder / name for name in FOLDER)
    missing = [path.name for path in (about, weights) if not path.is_file()]
    if missing:
        raise UserError(
            f"{folder}: a folder of weights holds {' and '.join(FOLDER)}; {missing[0]} is missing"
        )
    content = read_file(weights)
    try:
        table = json.loads(about.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{about}: not JSON ({error})") from None
    if not isinstance(table, dict) or "config" not in table:
        raise UserError(f'{about}: holds no "config", the table of the network')
    # config.json takes precedence over the metadata inside the other file.
    return {"model": content.get("model", content), **{k: table[k] for k in _KEPT if k in table}}
