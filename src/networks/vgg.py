"""FCN-8s (Long et al. 2015, "Fully convolutional networks for semantic segmentation") and SegNet
(Badrinarayanan et al. 2017, "SegNet: A deep convolutional encoder-decoder architecture for image
segmentation"), both over the thirteen convolutions of VGG-16 (Simonyan & Zisserman 2015, table 1,
column D).
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from .base import BATCH_NORMS, Network, init_he
from .config import NetworkConfig
from .u2net import ConvBNReLU, UpsampleLike

_STAGES = ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))


class FCN8s(Network):
    """VGG-16 with its fully connected layers turned into convolutions of 7×7 and 1×1, each with
    dropout; the scores of fc7 are upsampled ×2, added to those of pool4, upsampled ×2, added to
    those of pool3, and upsampled to the image's size (sections 4.1 and 4.2).

    Departures: fc6 is padded by 3, instead of 100 pixels around the image and a crop at the end,
    and poolings round up, so that the map covers an image of any size. As published, the two
    upsamplings ×2 are learned 4×4 transposed convolutions that start as bilinear, and the last one
    is fixed bilinear. Score layers start at random, not at zero, which would pass no gradient at
    first.

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
            for stage in _vgg16_channels(config.in_ch, width)
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
        doubling = [
            nn.ConvTranspose2d(classes, classes, 4, stride=2, padding=1, bias=False)
            for _ in range(2)
        ]
        self.doubling = nn.ModuleList(doubling)
        init_he(self)
        for up in doubling:
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
            y = self.upsample(up(y), pool) + score(pool)  # resized only where a pooling rounded up
        return [self.upsample(y, x)]

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Start from torchvision's ``vgg16``: its convolutions, and fc6 and fc7 if ``state`` has
        them.

        Raises:
            UserError: the layers are not VGG-16's.
        """
        _load_layers(_layers(self.stages), state, "features", self.config.name)
        if any(key.startswith("classifier.") for key in state):
            _load_layers(_layers(self.fc), state, "classifier", self.config.name)


def _conv_relu(in_ch: int, out_ch: int, kernel: int = 3) -> tuple[nn.Module, nn.Module]:
    conv = nn.Conv2d(in_ch, out_ch, kernel, padding=kernel // 2)
    return conv, nn.ReLU(inplace=True)


def _bilinear() -> Tensor:
    """The 4×4 filter whose transposed convolution of stride 2 enlarges bilinearly."""
    line = torch.tensor((0.25, 0.75, 0.75, 0.25))
    return torch.outer(line, line)


class SegNet(Network):
    """The thirteen convolutions of VGG-16, each with batch norm and ReLU, and their mirror image;
    the decoder unpools to the positions of the encoder's maxima, with 0 elsewhere (section 3,
    figure 3). The last of the decoder's convolutions gives the maps.

    Departure: poolings round up, so that the map covers an image of any size. Where an image is
    perfectly smooth, rounding decides which of four values is the maximum, so that two runtimes, or
    float32 and float64, may differ there by a few hundredths.

    Args:
        config: ``width`` 64 gives VGG-16's channels; 11 classes then make 29.4 M parameters.

    Shape: any H, W ≥ 32 keep their size.
    """

    backbone = "vgg16_bn"
    jumps = True

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        stages = _vgg16_channels(config.in_ch, config.width)
        mirrored = [[(b, a) for a, b in reversed(stage)] for stage in reversed(stages)]
        (last, _) = mirrored[-1].pop()
        self.encoder = nn.ModuleList(_convs(stage) for stage in stages)
        self.decoder = nn.ModuleList(_convs(stage) for stage in mirrored)
        self.out_conv = nn.Conv2d(last, config.out_ch, 3, padding=1)
        init_he(self)

    @property
    def stride(self) -> int:
        """Downsampling factor of the coarsest map that a batch norm sees, per side."""
        return 16

    def logits(self, x: Tensor) -> list[Tensor]:
        places = []
        for stage in self.encoder:
            x = self.run(stage, x)
            pooled, where = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            places.append((where, x.shape[-2:]))
            x = pooled
        for stage in self.decoder:
            where, size = places.pop()
            x = self.run(stage, F.max_unpool2d(x, where, (2, 2), output_size=size))
        return [self.out_conv(x)]

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Start the encoder from torchvision's ``vgg16_bn``.

        Raises:
            UserError: the layers are not those of VGG-16 with batch norm.
        """
        _load_layers(_layers(self.encoder), state, "features", self.config.name)


def _convs(channels: list[tuple[int, int]]) -> nn.Sequential:
    return nn.Sequential(*(ConvBNReLU(a, b, bias=True) for a, b in channels))


def _vgg16_channels(in_ch: int, width: int) -> list[list[tuple[int, int]]]:
    """Channels in and out of each convolution, by stage; a 2×2 max-pooling ends each stage."""
    stages: list[list[tuple[int, int]]] = []
    for multiples in _STAGES:
        stages.append([])
        for multiple in multiples:
            stages[-1].append((in_ch, multiple * width))
            in_ch = multiple * width
    return stages


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The convolutions and batch norms of a module, from the first to the last."""
    return (m for m in module.modules() if isinstance(m, (nn.Conv2d, *BATCH_NORMS)))


def _load_layers(
    into: Iterable[nn.Module], state: Mapping[str, Tensor], part: str, name: str
) -> None:
    """Copy torchvision's numbered layers (``features.0.weight`` …) to ours, in order.

    Args:
        into: our convolutions and batch norms.
        state: of torchvision's VGG.
        part: ``features`` or ``classifier``. Its fully connected layers fit convolutions with the
            same number of weights (Long et al. 2015, section 3.1).
        name: of the network, for messages.

    Raises:
        UserError: the layers or their shapes are different.
    """
    names = [key.split(".") for key in state if key.startswith(f"{part}.")]
    numbers = sorted({int(key[1]) for key in names if len(key) == 3 and key[1].isdigit()})
    for module in into:
        prefix = f"{part}.{numbers.pop(0)}." if numbers else f"{part} has too few layers: "
        own = module.state_dict()
        for key in [key for key in own if key != "num_batches_tracked"]:
            value = state.get(prefix + key)
            if value is None or value.numel() != own[key].numel():
                found = "missing" if value is None else f"of shape {list(value.shape)}"
                raise UserError(
                    f"{prefix}{key} is {found}; a backbone for {name} has {list(own[key].shape)}"
                )
            own[key] = value.view_as(own[key])
        module.load_state_dict(own)
