"""The networks for torch.hub.

torch.hub.load("path/to/this/clone", "u2net_lite", source="local")              # random weights
torch.hub.load("path/to/this/clone", "u2net_lite", source="local", pretrained=True)
torch.hub.load("path/to/this/clone", "load_model", "u2netp.pth", source="local")
torch.hub.load("path/to/this/clone", "predictor", "u2netp.pth", source="local")("photo.jpg")
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# What every network needs; torchvision and huggingface_hub are asked for where they are used.
dependencies = ["torch", "numpy", "PIL", "safetensors"]
_NAME = "u2net_toolkit_by_hub"


def _library() -> ModuleType:
    """``src`` by a name of its own: the code that calls may have a ``src`` or ``u2net`` too."""
    if _NAME not in sys.modules:
        init = Path(__file__).resolve().parent / "src" / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            _NAME, init, submodule_search_locations=[str(init.parent)]
        )
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[_NAME])
        except BaseException:
            del sys.modules[_NAME]  # half of it would be taken for all by the next call
            raise
    return sys.modules[_NAME]


def u2net_full(pretrained: bool = False, **overrides: Any):
    """The full network with random weights; ``overrides`` such as ``out_ch=4``."""
    if pretrained:
        raise ValueError('no weights of it here: load_model with the path of "u2net.pth"')
    return _library().u2net_full(**overrides)


def u2net_lite(pretrained: bool = False, **overrides: Any):
    """The lite network with random weights, or (``pretrained``) with those of this repository."""
    if pretrained and overrides:
        raise ValueError(f"pretrained weights are of the published table; drop {list(overrides)}")
    return load_model() if pretrained else _library().u2net_lite(**overrides)


def build_model(name: str, **overrides: Any):
    """Any network of the family with random weights: ``unet``, ``segnet``, a ``.json`` table …"""
    return _library().build_model(name, **overrides)


def load_model(path: str | None = None):
    """The network of a weights file of any kind that is read; by default this repository's own."""
    library = _library()
    return library.load_model(path or library.weights.load.SHIPPED)


def predictor(weights: str | None = None, **options: Any):
    """Picture in, map out: ``u2net.Predictor``, which takes the ``options`` too."""
    library = _library()
    return library.Predictor(weights or library.weights.load.SHIPPED, **options)
