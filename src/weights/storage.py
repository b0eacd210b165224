"""Weights on disk as plain tensors and words: torch files, safetensors, folders of ``config.json``
and ``model.safetensors``. What network they make is the business of ``src/weights/load.py``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_path, save_json, save_torch

FOLDER = ("config.json", "model.safetensors")  # as huggingface_hub names them

MAX_SIZE = 8192  # pixels a side that a network may be said to see

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
    save_state(model.plain_state(), path, half, _about(model), extra)


def save_state(
    state: Mapping[str, Tensor],
    path: str | Path,
    half: bool = False,
    about: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """As :func:`save_model`, of tensors by name; alone, where nothing is known ``about`` them."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if half:  # statistics of batch norm are few, and may exceed what 16 bits hold
        state = {name: t.half() if t.ndim > 1 else t for name, t in state.items()}
    if Path(path).suffix != ".safetensors":
        save_torch({"model": state, **about, **(extra or {})} if about else state, path)
        return
    with atomic_path(path) as temporary:
        try:
            save_file(state, temporary, {k: json.dumps(v) for k, v in (about or {}).items()})
        except SafetensorError as error:  # its word for a full disk
            raise UserError(f"{path}: cannot be written; full? ({error})") from None


def save_folder(model: nn.Module, folder: str | Path) -> None:
    """``config.json`` (the table and the size trained at) and ``model.safetensors``."""
    about, weights = (Path(folder) / name for name in FOLDER)
    save_model(model, weights)
    save_json(_about(model), about)


def read_file(path: str | Path) -> dict[str, Any]:
    """What a weights file, or a folder of :func:`save_folder`, holds; never runs code from it.

    Raises:
        UserError: the file is missing, torn, or unsafe to read.
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
    except Exception as error:  # a torn file makes torch raise nearly anything
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"{path}: refused, as it holds Python objects beside tensors, which may run code; "
                "ask its author for a plain state_dict"
            ) from None
        raise UserError(f"{path}: torn, or not a weights file") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a state_dict")
    return _checked(dict(content), path)


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    size = content.get("img_size", 320)
    if type(size) is not int or not 1 <= size <= MAX_SIZE:
        raise UserError(f"{path}: img_size is {size!r}, expected 1 to {MAX_SIZE} pixels")
    return content


def is_state(value: Any) -> bool:
    """Whether it is a dict of tensors by name, all of them whole and in memory."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_meta
        for name, tensor in value.items()
    )


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load ``state`` (in our names) into a network, which may be on torch's device ``meta``.

    Raises:
        UserError: something is missing, left over, of another shape or kind, or not finite.
    """
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
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds values that are not finite; its training broke")
    on_meta = any(tensor.is_meta for tensor in own.values())
    if on_meta:  # to_empty would import sympy; copies, as tensors of a file may share memory
        state = {name: tensor.to(own[name].dtype, copy=True) for name, tensor in state.items()}
    model.load_state_dict(state, assign=on_meta)


def _about(model: nn.Module) -> dict[str, Any]:
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
    # The folder's own words stand above those inside the file.
    return {"model": content.get("model", content), **{k: table[k] for k in _KEPT if k in table}}
