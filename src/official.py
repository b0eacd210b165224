"""The class names of the official repository, for code written for it.

    from model import U2NET, U2NETP           # there
    from u2net.official import U2NET, U2NETP  # here; in the clone: from src.official import …

State_dicts load and save under the official names, and ``forward`` returns the seven maps, the
fused one first, after the sigmoid, as a tuple. IS-Net's classes return the same as in
``xuebinqin/DIS``: a list of the six maps after the sigmoid, and a list of the six features.
"""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from .errors import UserError
from .networks.config import U2NetConfig
from .networks.tables import FULL, GT_ENCODER, ISNET, LITE
from .networks.u2net import RSU, ConvBNReLU, U2Net
from .weights.layouts import from_official, official_state, to_official


class REBNCONV(ConvBNReLU):
    """3×3 convolution with bias, batch norm, ReLU; ``dirate`` is padding and dilation."""

    def __init__(self, in_ch: int = 3, out_ch: int = 3, dirate: int = 1) -> None:
        super().__init__(in_ch, out_ch, dirate, bias=True)


class _RSU(RSU):
    height, dilated_block = 7, False

    def __init__(self, in_ch: int = 3, mid_ch: int = 12, out_ch: int = 3) -> None:
        super().__init__(self.height, in_ch, mid_ch, out_ch, self.dilated_block, bias=True)


class RSU7(_RSU):
    """Residual U-block of 7 levels."""


class RSU6(_RSU):
    """Residual U-block of 6 levels."""

    height = 6


class RSU5(_RSU):
    """Residual U-block of 5 levels."""

    height = 5


class RSU4(_RSU):
    """Residual U-block of 4 levels."""

    height = 4


class RSU4F(_RSU):
    """The dilated block of the deepest stages."""

    height, dilated_block = 4, True


class _Official(U2Net):
    table: U2NetConfig

    def __init__(self, in_ch: int = 3, out_ch: int = 1) -> None:
        super().__init__(self.table.replace(in_ch=in_ch, out_ch=out_ch, conv_bias=True))
        self.register_state_dict_post_hook(_rename_saved)
        self.register_load_state_dict_pre_hook(_rename_loaded)

    def plain(self) -> U2Net:
        """The same network as a :class:`U2Net`, with our names and outputs."""
        network = U2Net(self.config).train(self.training)
        network.load_state_dict(self.plain_state())
        network.img_size = self.img_size
        return network

    def plain_state(self) -> dict[str, Tensor]:
        """The tensors under our names."""
        return {from_official(name): tensor for name, tensor in self.state_dict().items()}

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Self:
        """As :meth:`U2Net.from_pretrained`; convolutions without a bias get zeros."""
        source = U2Net.from_pretrained(name, **options)
        config = source.config.replace(conv_bias=True)
        network = cls(config.in_ch, config.out_ch).eval()
        if network.config.structure != config.structure:
            raise UserError(f"{name}: holds {config.name}, not {cls.__name__}")
        network.load_state_dict(official_state(source))
        network.config = config  # with its mean and std
        network.img_size = source.img_size
        return network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.sigmoid(logits) for logits in self.logits(x))


class U2NET(_Official):
    """The full network."""

    table = FULL


class U2NETP(_Official):
    """The small network, lite here."""

    table = LITE


class ISNetDIS(_Official):
    """IS-Net."""

    table = ISNET

    def forward(self, x: Tensor) -> Any:
        maps, features = self.maps_and_features(x)
        return [torch.sigmoid(logits) for logits in maps], features


class ISNetGTEncoder(ISNetDIS):
    """The GT encoder whose features supervise those of IS-Net."""

    table = GT_ENCODER

    def __init__(self, in_ch: int = 1, out_ch: int = 1) -> None:
        super().__init__(in_ch, out_ch)


def _rename_saved(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + to_official(name.removeprefix(prefix))] = state.pop(name)


def _rename_loaded(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + from_official(name.removeprefix(prefix))] = state.pop(name)
