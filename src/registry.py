"""Networks by name, by table, or by what a checkpoint kept of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from .config import U2NetConfig
from .errors import UserError
from .u2net import U2Net, u2net_full, u2net_lite

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "u2net_full": u2net_full,
    "u2net_lite": u2net_lite,
}


def build_model(name_or_config: str | Path | dict | U2NetConfig, **overrides: Any) -> nn.Module:
    """A new network with random weights.

    Args:
        name_or_config: a name of :data:`NETWORKS`, a path to a JSON stage table, a table as a dict
            (as checkpoints hold it) or a :class:`U2NetConfig`.
        **overrides: fields to change, such as ``out_ch=4``.

    Raises:
        UserError: an unknown name, or a table that is wrong (it names the stage).

    Example:
        >>> build_model("u2net_lite", out_ch=2).config.out_ch
        2
    """
    if isinstance(name_or_config, U2NetConfig):
        return U2Net(name_or_config.replace(**overrides))
    if isinstance(name_or_config, dict):
        return U2Net(U2NetConfig.from_dict(name_or_config).replace(**overrides))
    name = str(name_or_config)
    if name.endswith(".json"):
        return U2Net(U2NetConfig.from_json(name).replace(**overrides))
    if name not in NETWORKS:
        raise UserError(
            f"unknown network {name!r}: choose {', '.join(NETWORKS)}, or the path of a .json stage "
            "table"
        )
    return NETWORKS[name](**overrides)
