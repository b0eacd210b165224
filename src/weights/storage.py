"""Weights on disk as plain tensors, numbers and text: torch files, safetensors, folders of
``config.json`` and ``model.safetensors``. ``load.py`` builds networks from them.
"""

import json
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import atomic_path, save_json, save_torch, utf8_path
from ..networks.base import Network
from ..networks.config import MAX_SIZE
from .faults import check_kind, explain, foreign_names, is_safetensors

FOLDER = ("config.json", "model.safetensors")  # as huggingface_hub names them
RUN = ("best.pt", "last.pt")  # as train.py names them: the best weights, else the newest
_KEPT = ("config", "img_size")  # in a safetensors file's metadata


def save_model(model: Network, path: str | Path, half: bool = False, **extra: Any) -> None:
    """Save a network's weights and table: a torch file, unless the suffix is ``.safetensors``.

    Args:
        model: a network of :func:`build_model`, not fused.
        path: the output file, written whole or not at all.
        half: store convolutions in 16 bits, for a file of half the size; loading widens them again.
        **extra: plain values to keep in the file too (epoch, scores); in safetensors, those that
            JSON can hold.

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
    """As :func:`save_model`, for tensors by name.

    Args:
        state: the tensors.
        path: the output file.
        half: store convolutions in 16 bits.
        about: table and size of the network; without it, the file holds the bare tensors.
        extra: plain values to keep in the file too, with ``about``.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if half:  # batch norm statistics are few, and may exceed the range of float16
        halved = {name: t.half() if t.ndim > 1 else t for name, t in state.items()}
        for name, tensor in halved.items():
            if tensor.dtype == torch.float16 and tensor.isinf().any():
                problem = f"{path}: {name} has values too large for 16 bits"
                raise UserError(problem, advice="leave {half} out")
        state = halved
    about = {**about, **(extra or {})} if about else {}
    if Path(path).suffix != ".safetensors":
        save_torch({"model": state, **about} if about else state, path)
        return
    with atomic_path(path) as temporary:
        try:
            texts = {name: json.dumps(value) for name, value in about.items()}
            save_file(state, temporary, {"format": "pt", **texts})  # transformers requires "format"
        except SafetensorError as error:  # such as a full disk
            raise UserError(f"{path}: cannot be written; is the disk full? ({error})") from None


def save_folder(model: Network, folder: str | Path, **extra: Any) -> None:
    """Write ``config.json`` (the table, the training size and ``extra``) and
    ``model.safetensors``."""
    about, weights = (Path(folder) / name for name in FOLDER)
    save_model(model, weights)
    save_json({**_about(model), **extra}, about)


def find_file(path: str | Path) -> Path:
    """The best weights of a run if ``path`` is its folder; any other path unchanged."""
    path = Path(path)
    if any((path / name).is_file() for name in FOLDER):
        return path
    best = [path / name for name in RUN if (path / name).is_file()]
    return best[0] if best else path


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a weights file or a folder of :func:`save_folder`; never runs code from it.

    Returns:
        A state_dict, or a dict of ``model`` (the state_dict), ``config`` and more.

    Raises:
        UserError: the file is missing, truncated, or unsafe to read.
    """
    path = find_file(path)
    if path.is_dir():
        return _checked(_read_folder(path), path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    left_out: list[str] = []
    try:
        check_kind(path)
        if is_safetensors(path):
            state, about = _read_safetensors(path)
            content: Any = {"model": state, **about} if "config" in about else state
        else:
            content, left_out = _read_torch(path)
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{path}: cannot be read (no permission)") from None
    except Exception:  # a truncated file makes torch raise nearly anything
        raise explain(path) from None
    if isinstance(content, _Ignored) or hasattr(content, "is_ignored"):
        name = left_out[0] if left_out else "of torch's own classes"
        raise UserError(
            f"{path}: holds a whole pickled network ({name}), which only its own code can read; "
            "save its state_dict() there, and give that file"
        )
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a state_dict")
    return _checked(Content(content, left_out=left_out), path)


class Content(dict[str, Any]):
    """The content of a file.

    Args:
        values: by name.
        left_out: classes of Python objects that were skipped, as ``module.name``.
    """

    def __init__(self, values: Mapping[str, Any], left_out: Sequence[str] = ()) -> None:
        super().__init__(values)
        self.left_out = tuple(left_out)


class _Ignored:
    """Stand-in for an object of any class in a checkpoint: accepts anything, and does nothing."""

    def __new__(cls, *args: Any) -> Self:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _IgnoredDict:
    """The same for dicts, as torch fills dicts of only a few known classes."""

    def __new__(cls, *args: Any) -> Any:
        stand_in: Any = OrderedDict()
        stand_in.is_ignored = True
        return stand_in


def _read_torch(path: Path) -> tuple[Any, list[str]]:
    """The content of a torch file, and the classes whose objects in it were skipped.

    torch reads only tensors and plain values. Checkpoints of training frameworks hold settings of
    other classes too: torch is given the two stand-ins above for those, so that none of their code
    is ever imported or run.
    """
    try:
        return _load_safely(path), []
    except UnpicklingError:
        names = foreign_names(path)
    kinds = (
        [_Ignored if n.startswith("numpy.") else _IgnoredDict for n in names],
        [_Ignored] * len(names),
    )
    for stand_ins in kinds:
        with (
            suppress(UnpicklingError, TypeError, ValueError),
            torch.serialization.safe_globals(list(zip(stand_ins, names, strict=True))),
        ):
            own = ("torch.", "collections.", "builtins.", "__builtin__.", "_codecs.")
            return _load_safely(path), [name for name in names if not name.startswith(own)]
    raise UnpicklingError


def _load_safely(path: Path) -> Any:
    # From an open file: given a name, torch goes by the suffix.
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about how a file was pickled
        return torch.load(file, map_location="cpu", weights_only=True)


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
    """Compare names, shapes and types; the message lists at most three faults of each kind."""
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
    with utf8_path(path) as readable, safe_open(readable, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return state, {k: json.loads(v) for k, v in (file.metadata() or {}).items() if k in _KEPT}


def _read_folder(folder: Path) -> dict[str, Any]:
    about, weights = (folder / name for name in FOLDER)
    missing = [path.name for path in (about, weights) if not path.is_file()]
    if missing:
        other = "" if len(missing) == 1 else f", nor is there a run's {RUN[0]}"
        raise UserError(
            f"{folder}: a folder of weights holds {' and '.join(FOLDER)}; {missing[0]} is "
            f"missing{other}"
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
