"""The U²-Net family of networks, their weights, and their use on a picture."""

from .base import Network, NetworkConfig
from .classes import coloured
from .config import FULL, LITE, StageConfig, U2NetConfig
from .errors import UserError
from .pipeline import stream
from .predictor import Predictor
from .registry import NETWORKS, build_model
from .results import Style, render
from .u2net import RSU, RSU4F, U2Net, u2net_full, u2net_lite
from .weights import load_model, save_model

__all__ = [
    "FULL",
    "LITE",
    "NETWORKS",
    "RSU",
    "RSU4F",
    "Network",
    "NetworkConfig",
    "Predictor",
    "StageConfig",
    "Style",
    "U2Net",
    "U2NetConfig",
    "UserError",
    "build_model",
    "coloured",
    "load_model",
    "render",
    "save_model",
    "stream",
    "u2net_full",
    "u2net_lite",
]
