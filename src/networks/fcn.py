"""FCN-8s (Long et al. 2015, "Fully convolutional networks for semantic segmentation")."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .base import Network, NetworkConfig, init_he
from .u2net import UpsampleLike
from .vgg import layers, load_layers, vgg16_channels


class FCN8s(Network):
    """VGG-16 with its fully connected layers turned into convolutions of 7×7 and 1×1, each with
    dropout; the scores of fc7 are doubled, added to those of pool4, doubled, added to those of
    pool3, and enlarged to the picture's size (sections 4.1 and 4.2).

    Departures: fc6 is padded by 3, in place of 100 pixels around the picture and a crop at the end,
    and poolings round up, so that any size comes back whole. As published, the two doublings are
    learned 4×4 transposed convolutions that start as bilinear, and the last enlargement is bilinear
    for good. Scores start at random, not at zero, through which no gradient passes at first.

    Args:
        config: ``width`` 64 gives VGG-16 and 4096 channels in fc6 and fc7; 21 classes then make
            134.5 M parameters.

    Shape: any H, W ≥ 32 keep their size.
    """

    backbone = "vgg16"

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.upsample = UpsampleLike()
        width, classes = config.width, config.out_ch
        self.stages = nn.ModuleList(
            nn.Sequential(*(part for pair in stage for part in _conv_relu(*pair)))
            for stage in vgg16_channels(config.in_ch, width)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.fc = nn.Sequential(
            *_conv_relu(8 * width, 64 * width, 7),
            nn.Dropout(0.5),
            *_conv_relu(64 * width, 64 * width, 1),
            nn.Dropout(0.5),
        )
        channels = (64 * width, 8 * width, 4 * width)  # of fc7, pool4, pool3
        self.scores = nn.ModuleList(nn.Conv2d(c, classes, 1) for c in channels)
        self.doubling = nn.ModuleList(
            nn.ConvTranspose2d(classes, classes, 4, stride=2, padding=1, bias=False)
            for _ in range(2)
        )
        init_he(self)
        for up in self.doubling:
            nn.init.zeros_(up.weight)
            for i in range(classes):
                up.weight.data[i, i] = _bilinear().to(up.weight)

    def logits(self, x: Tensor) -> list[Tensor]:
        pools, y = [], x
        for stage in self.stages:
            y = self.pool(self.run(stage, y))
            pools.append(y)
        of_fc7, *others = self.scores
        y = of_fc7(self.fc(y))
        for up, score, pool in zip(self.doubling, others, (pools[3], pools[2]), strict=True):
            y = self.upsample(up(y), pool) + score(pool)  # doubled, unless poolings rounded up
        return [self.upsample(y, x)]

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Start from torchvision's ``vgg16``: its convolutions, and fc6 and fc7 where ``state`` has
        them.

        Raises:
            UserError: other layers than VGG-16's.
        """
        load_layers(layers(self.stages), state, "features", self.config.name)
        if any(key.startswith("classifier.") for key in state):
            load_layers(layers(self.fc), state, "classifier", self.config.name)


def _conv_relu(in_ch: int, out_ch: int, kernel: int = 3) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(in_ch, out_ch, kernel, padding=kernel // 2)
    return conv, nn.ReLU(inplace=True)


def _bilinear() -> Tensor:
    """The 4×4 filter whose transposed convolution of stride 2 enlarges bilinearly."""
    line = torch.tensor((0.25, 0.75, 0.75, 0.25))
    return torch.outer(line, line)


def fcn8s(**overrides: object) -> FCN8s:
    """FCN-8s; overrides are fields of :class:`NetworkConfig`."""
    return FCN8s(NetworkConfig("fcn8s").replace(**overrides))
