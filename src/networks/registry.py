"""Networks by name, by table, or by what a checkpoint kept of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError
from .base import NetworkConfig
from .config import U2NetConfig, read_json
from .fcn import FCN8s, fcn8s
from .segnet import SegNet, segnet
from .u2net import U2Net, u2net_full, u2net_lite
from .unet import UNet, unet
from .unet_bn import UNetBN, unet_bn

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "u2net_full": u2net_full,
    "u2net_lite": u2net_lite,
    "unet": unet,
    "unet_bn": unet_bn,
    "fcn8s": fcn8s,
    "segnet": segnet,
}
_FAMILY = {"unet": UNet, "unet_bn": UNetBN, "fcn8s": FCN8s, "segnet": SegNet}


def build_model(
    name_or_config: str | Path | dict | U2NetConfig | NetworkConfig, **overrides: Any
) -> nn.Module:
    """A new network with random weights.

    Args:
        name_or_config: a name of :data:`NETWORKS`, a path to a JSON table, a table as a dict (as
            checkpoints hold it), a :class:`U2NetConfig` or a :class:`NetworkConfig`.
        **overrides: fields to change, such as ``out_ch=4``.

    Raises:
        UserError: an unknown name, or a table that is wrong (it names the stage or field).

    Example:
        >>> build_model("u2net_lite", out_ch=2).config.out_ch
        2
        >>> build_model({"name": "unet_bn", "width": 16}).config.width
        16
    """
    config = name_or_config
    if isinstance(config, str | Path):
        if str(config).lower().endswith(".json"):
            config = read_json(config, parse_config)
        elif config in NETWORKS:
            return NETWORKS[config](**overrides)
    if isinstance(config, dict):
        config = parse_config(config)
    if isinstance(config, U2NetConfig):
        return U2Net(config.replace(**overrides))
    if isinstance(config, NetworkConfig) and config.name in _FAMILY:
        return _FAMILY[config.name](config.replace(**overrides))
    name = str(getattr(config, "name", config))
    meant = {"u2net": "u2net_full", "u2netp": "u2net_lite"}.get(name.lower())
    raise UserError(
        f"unknown network {name!r}: choose {', '.join(NETWORKS)}, or the path of a .json table"
        + (f" ({name} is {meant} here)" if meant else "")
    )


def parse_config(table: Any) -> U2NetConfig | NetworkConfig:
    """A table as :meth:`Table.to_dict` gives it: stages make a U²-Net; without them, the name tells
    which network it is.

    Raises:
        UserError: it is none.
    """
    if isinstance(table, dict) and "encoder" not in table and str(table.get("name")) in _FAMILY:
        return NetworkConfig.from_dict(table)
    return U2NetConfig.from_dict(table)
