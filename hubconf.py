"""Networks for torch.hub.

torch.hub.load("path/to/this/clone", "u2net_lite", source="local")              # random weights
torch.hub.load("path/to/this/clone", "u2net_lite", source="local", pretrained=True)
torch.hub.load("path/to/this/clone", "load_model", "u2net", source="local")     # downloaded once
torch.hub.load("path/to/this/clone", "load_model", "u2netp.pth", source="local")
torch.hub.load("path/to/this/clone", "predictor", "u2netp.pth", source="local")("photo.jpg")
"""

# torch.hub.list shows every function and class without an underscore as an entry point.
import hashlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec as _ModuleSpec
from pathlib import Path as _Path
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:
    from src import Network, Predictor

# What every network needs; torchvision and huggingface_hub are imported on use.
dependencies = ["torch", "numpy", "PIL", "safetensors"]
_INIT = _Path(__file__).resolve().parent / "src" / "__init__.py"
# For each clone its own. The caller may have a ``src`` or ``u2net`` too.
_NAME = f"u2net_toolkit_by_hub_{hashlib.sha256(bytes(_INIT)).hexdigest()[:8]}"


class _Finder:
    """Finds this clone's ``src`` under its private name."""

    @staticmethod
    def find_spec(name: str, *_: object) -> _ModuleSpec | None:
        if name != _NAME:
            return None
        parts = [str(_INIT.parent)]
        return importlib.util.spec_from_file_location(name, _INIT, submodule_search_locations=parts)


def _library() -> _ModuleType:
    """This clone's ``src``. Other threads wait until it is imported."""
    sys.meta_path = [*sys.meta_path, _Finder]  # a new list, as other threads may be in the old one
    try:
        return importlib.import_module(_NAME)
    finally:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not _Finder]


def u2net_full(pretrained: bool = False, **overrides: _Any) -> "Network":
    """The full network with random weights (``overrides`` such as ``out_ch=4``) or, if
    ``pretrained``, with the published weights, downloaded once."""
    _check_overrides(pretrained, overrides)
    return load_model("u2net") if pretrained else _library().u2net_full(**overrides)


def u2net_lite(pretrained: bool = False, **overrides: _Any) -> "Network":
    """The lite network with random weights or, if ``pretrained``, with this repository's."""
    _check_overrides(pretrained, overrides)
    return load_model() if pretrained else _library().u2net_lite(**overrides)


def _check_overrides(pretrained: bool, overrides: dict[str, _Any]) -> None:
    if not isinstance(pretrained, bool):
        raise ValueError(
            f"pretrained is {pretrained!r}: expected True or False; load_model takes a name or file"
        )
    if pretrained and overrides:
        raise ValueError(
            f"pretrained weights fit only the published network; leave out {list(overrides)}"
        )


def isnet(**overrides: _Any) -> "Network":
    """IS-Net with random weights; ``overrides`` such as ``out_ch=4``."""
    return _library().isnet(**overrides)


def isnet_lite(**overrides: _Any) -> "Network":
    """IS-Net with the channels of the lite network, with random weights."""
    return _library().isnet_lite(**overrides)


def build_model(name: str, **overrides: _Any) -> "Network":
    """Any network with random weights: ``unet``, ``segnet``, a ``.json`` table…"""
    return _library().build_model(name, **overrides)


def load_model(path: str | None = None) -> "Network":
    """A network with its weights, by name or from a file; by default this repository's."""
    library = _library()
    return library.load_model(library.weights.load.SHIPPED if path is None else path)


def predictor(weights: str | None = None, **options: _Any) -> "Predictor":
    """Image in, map out: a ``u2net.Predictor`` with these ``options``."""
    library = _library()
    return library.Predictor(
        library.weights.load.SHIPPED if weights is None else weights, **options
    )
