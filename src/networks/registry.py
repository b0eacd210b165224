"""Build networks by name, from a table, or from the table in a checkpoint."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError
from .base import Network
from .config import NetworkConfig, U2NetConfig
from .tables import FULL, ISNET, ISNET_LITE, LITE
from .u2net import U2Net
from .unet import UNet, UNetBN
from .vgg import FCN8s, SegNet

_REGISTRY: dict[str, tuple[Callable[[Any], Network], U2NetConfig | NetworkConfig]] = {
    "u2net_full": (U2Net, FULL),
    "u2net_lite": (U2Net, LITE),
    "isnet": (U2Net, ISNET),
    "isnet_lite": (U2Net, ISNET_LITE),
    "unet": (UNet, NetworkConfig("unet")),
    "unet_bn": (UNetBN, NetworkConfig("unet_bn")),
    "fcn8s": (FCN8s, NetworkConfig("fcn8s")),
    "segnet": (SegNet, NetworkConfig("segnet")),
}
_OFFICIAL_NAMES = {"u2net": "u2net_full", "u2netp": "u2net_lite", "isnetdis": "isnet"}


def build_model(
    name_or_config: str | Path | dict[str, Any] | U2NetConfig | NetworkConfig, **overrides: Any
) -> Network:
    """A new network with random weights.

    Args:
        name_or_config: a name of :data:`NETWORKS`, a path to a JSON table, a table as a dict (as
            checkpoints hold it), a :class:`U2NetConfig` or a :class:`NetworkConfig`.
        **overrides: fields to change, such as ``out_ch=4``.

    Returns:
        The network in training mode, on the CPU.

    Raises:
        UserError: an unknown name, or a table that is not valid (it names the stage or field).

    Example:
        >>> build_model("u2net_lite", out_ch=2).config.out_ch
        2
        >>> build_model({"name": "unet_bn", "width": 16}).config.width
        16
    """
    config: Any = name_or_config
    if isinstance(config, str | Path):
        if str(config).lower().endswith(".json"):
            config = _read_json(config)
        elif str(config) in _REGISTRY:
            config = _REGISTRY[str(config)][1]
    elif isinstance(config, dict):
        config = parse_config(config)
    if isinstance(config, U2NetConfig):
        return U2Net(config.replace(**overrides))
    if isinstance(config, NetworkConfig) and _has_no_stages(config.name):
        network_class, _ = _REGISTRY[config.name]
        return network_class(config.replace(**overrides))
    name = str(getattr(config, "name", config))
    meant = _OFFICIAL_NAMES.get(name.lower())
    raise UserError(
        f"unknown network {name!r}: choose {', '.join(NETWORKS)}, or the path of a .json table"
        + (f" ({name} is {meant} here)" if meant else "")
    )


def u2net_full(**overrides: Any) -> Network:
    """The published full network: 43,995,469 parameters, 117.2 GFLOP at 320².

    Args:
        **overrides: fields of :class:`U2NetConfig` to change, such as ``out_ch=4``.
    """
    return build_model("u2net_full", **overrides)


def u2net_lite(**overrides: Any) -> Network:
    """The published small network, U²-Net†: 1,128,333 parameters, 39.5 GFLOP at 320².

    Args:
        **overrides: fields of :class:`U2NetConfig` to change, such as ``out_ch=4``.

    Example:
        >>> u2net_lite().num_maps
        7
    """
    return build_model("u2net_lite", **overrides)


def isnet(**overrides: Any) -> Network:
    """IS-Net as published: 44,046,790 parameters; the output is the finest side map, at half the
    resolution, and images are resized to 1024².

    Args:
        **overrides: fields of :class:`U2NetConfig` to change, such as ``out_ch=4``.

    Example:
        >>> isnet().img_size
        1024
    """
    return build_model("isnet", **overrides)


def isnet_lite(**overrides: Any) -> Network:
    """IS-Net with the channels of U²-Net†: 1,165,254 parameters.

    Args:
        **overrides: fields of :class:`U2NetConfig` to change, such as ``out_ch=4``.
    """
    return build_model("isnet_lite", **overrides)


NETWORKS: dict[str, Callable[..., Network]] = {
    name: partial(build_model, name) for name in _REGISTRY
}
"""Every network by name: ``NETWORKS["unet"](out_ch=2)``."""


def parse_config(table: Any) -> U2NetConfig | NetworkConfig:
    """Parse a table of :meth:`Table.to_dict`: with stages, it is a U²-Net's; without, its name
    selects the network.

    Raises:
        UserError: the table is not valid.
    """
    if isinstance(table, dict) and "encoder" not in table and _has_no_stages(table.get("name")):
        return NetworkConfig.from_dict(table)
    return U2NetConfig.from_dict(table)


def _read_json(path: str | Path) -> U2NetConfig | NetworkConfig:
    """The table of a JSON file; errors name it."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable JSON network table ({error})") from None
    try:
        return parse_config(table)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _has_no_stages(name: object) -> bool:
    """Whether a registered network of this name is built from a :class:`NetworkConfig`."""
    return isinstance(name, str) and isinstance(_REGISTRY.get(name, ("", ""))[1], NetworkConfig)
