"""U-Net (Ronneberger et al. 2015, "U-Net: Convolutional networks for biomedical image
segmentation"): as published, unpadded and with mirrored borders, and as tutorials train it, padded
and with batch norm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, init_he
from .config import NetworkConfig
from .u2net import ConvBNReLU

_LEVELS = 4  # halvings
_LOST = 184  # pixels that the unpadded convolutions take off each side length
_UNIT = 2**_LEVELS


class UNet(Network):
    """The network of figure 1, without departures: two unpadded 3×3 convolutions with ReLU per
    level, 2×2 max-pooling, 2×2 transposed convolutions, centre-cropped skips, dropout at the end of
    the contracting path, weights of variance 2 / fan-in (section 3).

    Args:
        config: ``out_ch`` 2 and ``in_ch`` 1 are the paper's, with 31,030,658 parameters.

    Shape: in training mode the map is that of the image's centre: 572² → 388². A side must be
    16 n + 12 and at least 188 for all poolings to meet even maps (section 3); any other is mirrored
    at its borders up to the next, so 288² becomes 300² and gives 116². In eval mode the border is
    mirrored by 92 pixels or more, so that the map covers the whole image (the paper's overlap-tile
    rule, figure 2).

    Example:
        >>> from src import NetworkConfig
        >>> net = UNet(NetworkConfig("unet", in_ch=1, out_ch=2)).train()
        >>> net(torch.zeros(1, 1, 572, 572))[0].shape
        torch.Size([1, 2, 388, 388])
    """

    margin = _LOST // 2

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        channels = [config.width * 2**i for i in range(_LEVELS + 1)]
        pairs = zip([config.in_ch, *channels], channels, strict=False)
        self.encoder = nn.ModuleList(_two_convs(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, stride=2) for c in channels[-2::-1])
        self.decoder = nn.ModuleList(_two_convs(2 * c, c) for c in channels[-2::-1])
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.5)
        self.out_conv = nn.Conv2d(config.width, config.out_ch, 1)
        init_he(self)

    def logits(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        y = self._tile(_mirror(_mirror(x, 2, not self.training), 3, not self.training))
        return [y if self.training else y[..., :height, :width]]

    def _tile(self, x: Tensor) -> Tensor:
        """The logits, with sides smaller by 184, of an image whose sides are 16 n + 12."""
        skips: list[Tensor] = []
        for i, block in enumerate(self.encoder):
            x = self.run(block, self.pool(skips[-1]) if skips else x)
            skips.append(self.dropout(x) if i >= _LEVELS - 1 else x)
        x = skips.pop()
        for up, block in zip(self.up, self.decoder, strict=True):
            skip, x = skips.pop(), up(x)
            lost = (skip.shape[-1] - x.shape[-1]) // 2
            x = self.run(block, torch.cat((F.pad(skip, [-lost] * 4), x), dim=1))
        return self.out_conv(x)


def _two_convs(in_ch: int, out_ch: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_ch, out_ch, 3),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_ch, out_ch, 3),
        nn.ReLU(inplace=True),
    )


def _mirror(x: Tensor, dim: int, whole: bool) -> Tensor:
    """``x`` mirrored at both ends of ``dim``, to the next length that the poolings can take.

    ``whole``: by at least the margin, so that no pixel of the map is lost; else by as little as
    possible, half of it at each end. By index, as F.pad cannot mirror more than the length.
    """
    length = x.shape[dim]
    if whole:
        total, before = (length + _LOST + 3) // _UNIT * _UNIT + 12, _LOST // 2
    else:
        total = max((length + 3) // _UNIT * _UNIT + 12, _LOST + 4)
        before = (total - length + 1) // 2
    place = torch.arange(total, device=x.device) - before
    there_and_back = 2 * (length - 1)
    place = place.remainder(torch.full_like(place, there_and_back))
    return x.index_select(dim, torch.minimum(place, there_and_back - place))


class ConvBNDropout(ConvBNReLU):
    """3×3 convolution, batch norm, dropout, LeakyReLU (slope 0.01); keeps height and width.

    Args:
        in_ch: channels in.
        out_ch: channels out.
        dropout: share of values that training sets to 0.
    """

    def __init__(self, in_ch: int, out_ch: int, dropout: float) -> None:
        super().__init__(in_ch, out_ch)
        self.relu = nn.Sequential(nn.Dropout(dropout), nn.LeakyReLU(inplace=True))


class UNetBN(Network):
    """U-Net (Ronneberger et al. 2015) with these departures: convolutions padded by one, batch norm
    (Ioffe & Szegedy 2015), dropout (0.3 and 0.4) and LeakyReLU after the two of a level, a 3×3
    convolution of stride 2 with LeakyReLU in place of pooling, nearest upsampling and a 1×1
    convolution in place of a transposed one, a 3×3 convolution at the end.

    Args:
        config: ``width`` 64 gives 64, 128, 256, 512 and 1024 channels.

    Shape: any H, W ≥ 32 keep their size; odd sizes are halved rounding up.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        channels = [config.width * 2**i for i in range(_LEVELS + 1)]
        pairs = zip([config.in_ch, *channels], channels, strict=False)
        self.encoder = nn.ModuleList(_level(a, b) for a, b in pairs)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, c, 3, stride=2, padding=1), nn.LeakyReLU(inplace=True))
            for c in channels[:-1]
        )
        self.up = nn.ModuleList(nn.Conv2d(2 * c, c, 1) for c in channels[-2::-1])
        self.decoder = nn.ModuleList(_level(2 * c, c) for c in channels[-2::-1])
        self.out_conv = nn.Conv2d(config.width, config.out_ch, 3, padding=1)
        init_he(self)

    @property
    def stride(self) -> int:
        """Downsampling factor of the coarsest map, per side."""
        return _UNIT

    def logits(self, x: Tensor) -> list[Tensor]:
        skips: list[Tensor] = []
        for level, down in zip(self.encoder, self.down, strict=False):
            skips.append(self.run(level, x))
            x = down(skips[-1])
        x = self.run(self.encoder[-1], x)
        for up, level in zip(self.up, self.decoder, strict=True):
            # Convolve before upsampling: a 1×1 convolution gives the same, at a quarter of the
            # cost.
            size = skips[-1].shape[-2:]
            x = self.run(level, [F.interpolate(up(x), size=size, mode="nearest"), skips.pop()])
        return [self.out_conv(x)]


def _level(in_ch: int, out_ch: int) -> nn.Sequential:
    return nn.Sequential(ConvBNDropout(in_ch, out_ch, 0.3), ConvBNDropout(out_ch, out_ch, 0.4))
