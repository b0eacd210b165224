"""Networks for torch.hub.

torch.hub.load("path/to/this/clone", "u2net_lite", source="local")              # random weights
torch.hub.load("path/to/this/clone", "u2net_lite", source="local", pretrained=True)
torch.hub.load("path/to/this/clone", "load_model", "u2net", source="local")     # downloaded once
torch.hub.load("path/to/this/clone", "load_model", "u2netp.pth", source="local")
torch.hub.load("path/to/this/clone", "predictor", "u2netp.pth", source="local")("photo.jpg")
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from src import Network, Predictor

# What every network needs; torchvision and huggingface_hub are imported on use.
dependencies = ["torch", "numpy", "PIL", "safetensors"]
_NAME = "u2net_toolkit_by_hub"


def _library() -> ModuleType:
    """Import ``src`` under a private name, as the caller may have a ``src`` or ``u2net`` too."""
    if _NAME not in sys.modules:
        init = Path(__file__).resolve().parent / "src" / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            _NAME, init, submodule_search_locations=[str(init.parent)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[_NAME])
        except BaseException:
            del sys.modules[_NAME]  # else the next call would get a half-loaded library
            raise
    return sys.modules[_NAME]


def u2net_full(pretrained: bool = False, **overrides: Any) -> "Network":
    """The full network with random weights (``overrides`` such as ``out_ch=4``) or, if
    ``pretrained``, with the published weights, downloaded once."""
    _check_overrides(pretrained, overrides)
    return load_model("u2net") if pretrained else _library().u2net_full(**overrides)


def u2net_lite(pretrained: bool = False, **overrides: Any) -> "Network":
    """The lite network with random weights or, if ``pretrained``, with this repository's."""
    _check_overrides(pretrained, overrides)
    return load_model() if pretrained else _library().u2net_lite(**overrides)


def _check_overrides(pretrained: bool, overrides: dict[str, Any]) -> None:
    if pretrained and overrides:
        raise ValueError(
            f"pretrained weights fit only the published network; leave out {list(overrides)}"
        )


def isnet(**overrides: Any) -> "Network":
    """IS-Net with random weights; ``overrides`` such as ``out_ch=4``."""
    return _library().isnet(**overrides)


def isnet_lite(**overrides: Any) -> "Network":
    """IS-Net with the channels of the lite network, with random weights."""
    return _library().isnet_lite(**overrides)


def build_model(name: str, **overrides: Any) -> "Network":
    """Any network with random weights: ``unet``, ``segnet``, a ``.json`` table…"""
    return _library().build_model(name, **overrides)


def load_model(path: str | None = None) -> "Network":
    """A network with its weights, by name or from a file; by default this repository's."""
    library = _library()
    return library.load_model(path or library.weights.load.SHIPPED)


def predictor(weights: str | None = None, **options: Any) -> "Predictor":
    """Image in, map out: a ``u2net.Predictor`` with these ``options``."""
    library = _library()
    return library.Predictor(weights or library.weights.load.SHIPPED, **options)
