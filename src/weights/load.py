"""Load a network from weights of any kind: a name of ``named.py``, a file of ``storage.py`` or
ONNX, in any layout of ``layouts.py``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from ..networks.base import Network
from ..networks.registry import build_model
from ..networks.tables import FULL, ISNET, LITE
from ..words import counted
from .layouts import StateDict, recognise
from .named import NAMES, PUBLISHED, Published, alone, fetch_onnx, find_published
from .onnx import check_onnx, read_onnx
from .storage import FOLDER, RUN, find_file, is_state, load_state, read_file, save_model

__all__ = ["SHIPPED", "find_weights", "is_converted", "load_model", "save_model"]

_FILE = "u2net_lite.safetensors"
_LIBRARY = Path(__file__).resolve().parents[1]
_INSTALLED = _LIBRARY / "shipped" / _FILE
SHIPPED = _INSTALLED if _INSTALLED.is_file() else _LIBRARY.parent / "weights" / _FILE
"""The weights called ``lite``, which scripts use by default; see ``weights/README.md``."""


def load_model(weights: str | Path) -> Network:
    """Load a network with its weights.

    Args:
        weights: a checkpoint or weights of this toolkit, a folder of ``save_pretrained`` or of a
            run, a file in the official U-2-Net layout, an ``.onnx`` file of a U²-Net, or a name
            such as ``u2net`` (:func:`find_weights`).

    Returns:
        The network on the CPU, in eval mode; ``origin`` says what kind of weights it has, and
        ``img_size`` the size in pixels that it was trained at.

    Raises:
        UserError: the file is missing, truncated, unsafe to read, or fits no known network; or
            published weights cannot be downloaded.

    Example:
        >>> net = load_model("runs/lite/best.pt")  # doctest: +SKIP
        >>> load_model("lite").config.name
        'u2net_lite'
    """
    path = find_weights(weights)
    file = find_file(path)
    model = _load_file(file)
    if file != path:
        model.origin = f"{model.origin}, {file.name} of the run"
    if entry := PUBLISHED.get(str(weights)):
        kind, _, rest = model.origin.partition(", ")
        if path == entry.converted:
            classes = f": {', '.join(entry.classes)}" if entry.classes else ""
            model.origin = f"published weights, {rest}{classes}"
            _prepare(model, entry)  # as an older version may have written another mean
        else:
            model.origin = f"{kind} of that name, not the published weights, {rest}"
    return model


def find_weights(weights: str | Path) -> Path:
    """The file or folder of the given weights. Published ones are downloaded once.

    Args:
        weights: a path, or a name of :data:`~.named.PUBLISHED`, or ``lite``, the weights that come
            with this toolkit. A file, or a folder of weights, takes precedence over its name.

    Returns:
        A path. One that does not exist and is not a name is returned unchanged, for the reader to
        report.

    Raises:
        UserError: published weights cannot be downloaded, or nothing has this name.

    Example:
        >>> find_weights("lite") == SHIPPED
        True
    """
    path, name = Path(weights), str(weights)
    if path.is_file() or any((path / part).is_file() for part in (*FOLDER, *RUN)):
        return path
    if name == "lite":
        return SHIPPED
    if entry := PUBLISHED.get(name):
        return _fetch_published(entry)
    if path.stem in PUBLISHED and not path.exists():
        published = f"the published ones are called {path.stem}, without a folder or suffix"
        raise UserError(f"{path}: no such weights file; {published}")
    if path.suffix or path.name != name or path.exists():
        return path
    names = ", ".join(NAMES)
    raise UserError(f"{name}: no such weights file, nor a name of published weights ({names})")


def _fetch_published(entry: Published) -> Path:
    """The published weights as safetensors, so that ONNX is parsed only the first time."""
    if not is_converted(entry):
        with alone(entry):
            if not is_converted(entry):  # by the process that held the lock
                model = _load_file(fetch_onnx(entry))
                source = {"name": entry.name, "md5": entry.md5, "url": entry.url}
                save_model(model, entry.converted, source=source, classes=entry.classes)
    return entry.converted


def _prepare(model: Network, entry: Published) -> None:
    """Give the network of a published file the size, mean and std of its images."""
    table = {table.name: table for table in (FULL, LITE, ISNET)}[entry.network]
    own = {field: getattr(table, field) for field in ("img_size", "mean", "std")}
    model.config = model.config.replace(**own | dict(entry.preprocessing))
    model.img_size = model.config.img_size


def is_converted(entry: Published) -> bool:
    """Whether the cache holds the complete network converted from this very file."""
    try:
        with safe_open(entry.converted, framework="pt") as file:
            return bool(json.loads(file.metadata()["source"])["md5"] == entry.md5)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return False


def _load_file(path: Path) -> Network:
    config: Any
    img_size: int | None  # None where the file does not say
    is_onnx = Path(path).suffix.lower() == ".onnx"
    if is_onnx:
        kind = "ONNX file"
        config, state, img_size = read_onnx(path)
    else:
        content = read_file(path)
        kind, config, state = find_state(content, path)
        img_size = content.get("img_size")
    try:
        # Without memory for weights: a huge table costs nothing until the file's tensors fit.
        with torch.device("meta"):
            model = build_model(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    model.img_size = img_size or model.img_size
    load_state(model, state, path)
    if is_onnx:
        check_onnx(model, path)
        if entry := find_published(path):  # such files hold no mean and std
            _prepare(model, entry)
            kind = f"ONNX file published as {entry.name}"
    model.origin = f"{kind}, {model.config.name}, {counted(model.config.out_ch, 'map')}"
    return model.eval()


def find_state(content: dict[str, Any], path: str | Path) -> tuple[str, dict[str, Any], StateDict]:
    """The kind of weights, the table of their network as a dict, and its tensors."""
    if not all(isinstance(content.get(key), Mapping) for key in ("model", "config")):
        kind, table, state = recognise(content, path)
        return kind, table.to_dict(), state
    # If a checkpoint has an exponential moving average, its scores are those of the average.
    state = content["model"] if content.get("ema") is None else content["ema"]
    if not is_state(state):
        raise UserError(f"{path}: its weights are not tensors by name")
    kind = "folder of save_pretrained" if Path(path).is_dir() else "checkpoint of this toolkit"
    return kind, dict(content["config"]), state
