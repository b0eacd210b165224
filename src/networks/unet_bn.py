"""The padded U-Net with batch norm that tutorials train: the picture's size in, its size out."""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, NetworkConfig, init_he
from .u2net import ConvBNReLU

_LEVELS = 4  # halvings


class ConvBNDropout(ConvBNReLU):
    """3×3 convolution, batch norm, dropout, LeakyReLU (slope 0.01); keeps height and width.

    Args:
        in_ch: channels in.
        out_ch: channels out.
        dropout: the share of values that training sets to 0.
    """

    def __init__(self, in_ch: int, out_ch: int, dropout: float) -> None:
        super().__init__(in_ch, out_ch)
        self.relu = nn.Sequential(nn.Dropout(dropout), nn.LeakyReLU(inplace=True))


class UNetBN(Network):
    """U-Net (Ronneberger et al. 2015) with these departures: convolutions padded by one, batch norm
    (Ioffe & Szegedy 2015), dropout of .3 and .4 and LeakyReLU after the two of a level, a 3×3
    convolution of stride 2 with LeakyReLU in place of pooling, nearest upsampling and a 1×1
    convolution in place of a transposed one, a 3×3 convolution at the end.

    Args:
        config: ``width`` 64 gives 64, 128, 256, 512 and 1024 channels.

    Shape: any H, W ≥ 32 keep their size; odd maps are halved upwards.
    """

    stride = 2**_LEVELS

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        channels = [config.width * 2**i for i in range(_LEVELS + 1)]
        pairs = zip([config.in_ch, *channels], channels, strict=False)
        self.encoder = nn.ModuleList(_Level(a, b) for a, b in pairs)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, stride=2, padding=1), nn.LeakyReLU(inplace=True))
            for c in channels[:-1]
        )
        self.up = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in channels[-2::-1])
        self.decoder = nn.ModuleList(_Level(2 * c, c) for c in channels[-2::-1])
        self.out_conv = nn.Conv2d(config.width, config.out_ch, 3, padding=1)
        init_he(self)

    def logits(self, x: Tensor) -> list[Tensor]:
        skips: list[Tensor] = []
        for level, down in zip(self.encoder, self.down, strict=False):
            skips.append(self.run(level, x))
            x = down(skips[-1])
        x = self.run(self.encoder[-1], x)
        for up, level in zip(self.up, self.decoder, strict=True):
            skip = skips.pop()
            # Convolved before it is enlarged: the same from a 1×1 convolution, at a quarter of the
            # cost.
            x = F.interpolate(up(x), size=skip.shape[-2:], mode="nearest")
            x = self.run(level, x, skip)
        return [self.out_conv(x)]


class _Level(nn.ModuleList):
    def __init__(self, in_ch: int, out_ch: int) -> None:
        super().__init__((ConvBNDropout(in_ch, out_ch, 0.3), ConvBNDropout(out_ch, out_ch, 0.4)))

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        first, second = self
        return second(first(x, skip))


def unet_bn(**overrides: object) -> UNetBN:
    """The padded U-Net with batch norm; overrides are fields of :class:`NetworkConfig`."""
    return UNetBN(NetworkConfig("unet_bn").replace(**overrides))
