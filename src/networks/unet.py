"""U-Net as published (Ronneberger et al. 2015, "U-Net: Convolutional networks for biomedical image
segmentation", figure 1): unpadded convolutions, cropped skips, mirrored borders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, NetworkConfig, init_he

_LEVELS = 4  # poolings
_LOST = 184  # pixels that the unpadded convolutions take off each side length
_UNIT = 2**_LEVELS


class UNet(Network):
    """The network of figure 1, without departures: two unpadded 3×3 convolutions with ReLU a level,
    2×2 max-pooling, 2×2 transposed convolutions, centre-cropped skips, dropout at the end of the
    contracting path, weights of variance 2 / fan-in (section 3).

    Args:
        config: ``out_ch`` 2 and ``in_ch`` 1 are the paper's, with 31,030,658 parameters.

    Shape: in training mode the map is that of the picture's centre: 572² → 388². A side must be
    16 n + 12 and at least 188 for all poolings to meet even maps (section 3); another one is
    mirrored at its borders up to the next, so 288² is taken for 300² and gives 116². In eval mode
    the border is mirrored by 92 pixels and more, so that the whole picture comes back (the paper's
    overlap-tile rule, figure 2).

    Example:
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
        """A picture whose sides are 16 n + 12 to logits of sides 184 smaller."""
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

    ``whole``: by the margin at least, so that no pixel's map is lost; else as little as can be,
    and by half of it at each end. By index, as F.pad cannot mirror more than there is.
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


def unet(**overrides: object) -> UNet:
    """The published U-Net; overrides are fields of :class:`NetworkConfig`."""
    return UNet(NetworkConfig("unet").replace(**overrides))
