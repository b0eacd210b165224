"""The U²-Net family of networks, their weights, and their use on a picture."""

from .base import Network, NetworkConfig
from .classes import coloured
from .config import FULL, LITE, StageConfig, U2NetConfig
from .errors import UserError
from .fcn import FCN8s
from .pipeline import stream
from .predictor import Predictor
from .registry import NETWORKS, build_model
from .results import Style, render
from .segnet import SegNet
from .u2net import RSU, RSU4F, U2Net, u2net_full, u2net_lite
from .unet import UNet
from .unet_bn import UNetBN
from .weights import load_model, save_model

__all__ = [
    "FULL",
    "LITE",
    "NETWORKS",
    "RSU",
    "RSU4F",
    "FCN8s",
    "Network",
    "NetworkConfig",
    "Predictor",
    "SegNet",
    "StageConfig",
    "Style",
    "U2Net",
    "U2NetConfig",
    "UNet",
    "UNetBN",
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
