"""The U²-Net family of networks, their weights, and their use on an image."""

from .errors import UserError
from .inference.predictor import Predictor
from .inference.stream import stream
from .networks.base import Network
from .networks.config import NetworkConfig, StageConfig, StemConfig, U2NetConfig
from .networks.registry import (
    NETWORKS,
    build_model,
    isnet,
    isnet_lite,
    u2net_full,
    u2net_lite,
)
from .networks.tables import FULL, GT_ENCODER, ISNET, ISNET_LITE, LITE
from .networks.u2net import RSU, RSU4F, U2Net
from .networks.unet import UNet, UNetBN
from .networks.vgg import FCN8s, SegNet
from .pictures.classes import coloured
from .pictures.render import Style, render
from .weights.load import load_model, save_model

__version__ = "0.1.0"

__all__ = [
    "FULL",
    "GT_ENCODER",
    "ISNET",
    "ISNET_LITE",
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
    "StemConfig",
    "Style",
    "U2Net",
    "U2NetConfig",
    "UNet",
    "UNetBN",
    "UserError",
    "build_model",
    "coloured",
    "isnet",
    "isnet_lite",
    "load_model",
    "render",
    "save_model",
    "stream",
    "u2net_full",
    "u2net_lite",
]
