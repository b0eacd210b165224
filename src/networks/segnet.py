"""SegNet (Badrinarayanan et al. 2017, "SegNet: A deep convolutional encoder-decoder architecture
for image segmentation").
"""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network, NetworkConfig, init_he
from .u2net import ConvBNReLU
from .vgg import layers, load_layers, vgg16_channels


class SegNet(Network):
    """The thirteen convolutions of VGG-16, each with batch norm and ReLU, and their mirror image;
    where the encoder pooled a maximum, the decoder puts its value back there, and 0 elsewhere
    (section 3, figure 3). The last of the decoder's convolutions gives the maps.

    Departure: poolings round up, so that any size comes back whole. Where a picture is perfectly
    smooth, rounding decides which of four numbers was the maximum, so that two runtimes, or float32
    and float64, may differ there by some hundredths.

    Args:
        config: ``width`` 64 gives VGG-16's channels; 11 classes then make 29.4 M parameters.

    Shape: any H, W ≥ 32 keep their size.
    """

    backbone = "vgg16_bn"
    stride = 16
    jumps = True

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        stages = vgg16_channels(config.in_ch, config.width)
        mirrored = [[(b, a) for a, b in reversed(stage)] for stage in reversed(stages)]
        (last, _) = mirrored[-1].pop()
        self.encoder = nn.ModuleList(_convs(stage) for stage in stages)
        self.decoder = nn.ModuleList(_convs(stage) for stage in mirrored)
        self.out_conv = nn.Conv2d(last, config.out_ch, 3, padding=1)
        init_he(self)

    def logits(self, x: Tensor) -> list[Tensor]:
        places = []
        for stage in self.encoder:
            x = self.run(stage, x)
            pooled, where = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            places.append((where, x.shape[-2:]))
            x = pooled
        for stage in self.decoder:
            where, size = places.pop()
            x = self.run(stage, F.max_unpool2d(x, where, 2, output_size=size))
        return [self.out_conv(x)]

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Start the encoder from torchvision's ``vgg16_bn``.

        Raises:
            UserError: other layers than those of VGG-16 with batch norm.
        """
        load_layers(layers(self.encoder), state, "features", self.config.name)


def _convs(channels: list[tuple[int, int]]) -> nn.Sequential:
    return nn.Sequential(*(ConvBNReLU(a, b, bias=True) for a, b in channels))


def segnet(**overrides: object) -> SegNet:
    """SegNet; overrides are fields of :class:`NetworkConfig`."""
    return SegNet(NetworkConfig("segnet").replace(**overrides))
