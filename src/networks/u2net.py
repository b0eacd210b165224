"""U²-Net (Qin et al. 2020, "U²-Net: Going deeper with nested U-structure for salient object
detection"): RSU blocks and the network built from a stage table, IS-Net included (Qin et al. 2022,
"Highly accurate dichotomous image segmentation").
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .base import BATCH_NORMS, Network
from .config import StageConfig, U2NetConfig


class UpsampleLike(nn.Module):
    """Bilinear resize of ``x`` to the height and width of ``ref``."""

    def forward(self, x: Tensor, ref: Tensor) -> Tensor:
        return F.interpolate(x, size=ref.shape[-2:], mode="bilinear", align_corners=False)


class Pool(nn.MaxPool2d):
    """2×2 max-pooling to half the height and width, rounded up."""

    def __init__(self) -> None:
        super().__init__(2, stride=2, ceil_mode=True)

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x``, for the skip connection, and ``x`` pooled."""
        return x, self(x)


class Conv2d(nn.Conv2d):
    """A convolution that can be called with parts of its weights; zero padding only."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` convolved with other weights, by this layer's stride, padding and dilation."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias)


class ConvBNReLU(nn.Module):
    """3×3 convolution, batch norm, ReLU; keeps height and width, or halves them (rounded up).

    Called with a list of two maps, it concatenates them and, outside training, empties the list:
    the maps are freed before the convolution if nothing else holds them.

    Args:
        in_ch: channels in.
        out_ch: channels out.
        dilation: of the convolution; the padding equals it.
        bias: give the convolution a bias in addition to that of the batch norm.
        stride: of the convolution, 1 or 2.
    """

    def __init__(
        self, in_ch: int, out_ch: int, dilation: int = 1, bias: bool = False, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_ch, out_ch, 3, stride, dilation, dilation, bias=bias)
        self.bn: nn.Module = nn.BatchNorm2d(out_ch)
        self.relu: nn.Module = nn.ReLU(inplace=True)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if isinstance(x, Tensor):
            return self.activate(self.conv(x))
        if not self.training:
            return self.activate(self.conv(_concatenated(x)))
        # The same sum as two convolutions: autograd needn't keep the concatenation as well as its
        # parts, and gradients come back whole instead of as slices that are slow to read.
        conv, (x, skip) = self.conv, x
        first, second = conv.weight.split((x.shape[1], skip.shape[1]), dim=1)
        return self.activate(conv.convolve(x, first, conv.bias), conv.convolve(skip, second, None))

    def activate(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Batch norm and ReLU of the convolution's output, which may come as two summands."""
        return self.relu(self.bn(x if other is None else x.add_(other)))

    def fuse(self) -> None:
        """Fold the batch norm into the convolution. Inference only; done once."""
        conv, bn = self.conv, self.bn
        if isinstance(bn, BATCH_NORMS):
            mean, variance = bn.running_mean, bn.running_var
            assert mean is not None and variance is not None
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, mean, variance, bn.eps, bn.weight, bn.bias
            )
            self.bn = nn.Identity()


def _concatenated(maps: list[Tensor]) -> Tensor:
    whole = torch.cat(maps, dim=1)
    maps.clear()
    return whole


class RSU(nn.Module):
    """Residual U-block (paper, section 3.1): a small U-Net whose input conv is added to its output.

    Args:
        height: L, the number of levels, ≥ 2.
        in_ch: channels in.
        mid_ch: channels inside.
        out_ch: channels out.
        dilated: growing dilation in place of pooling and upsampling, every map at full size.
        bias: give the convolutions a bias in addition to that of the batch norm.

    Shape: N×in_ch×H×W → N×out_ch×H×W, any H, W ≥ 1. The input may be a list of two maps, see
    :class:`ConvBNReLU`.
    """

    in_place = False  # add in place if no gradient is needed; set for inference, see prepare

    def __init__(
        self,
        height: int,
        in_ch: int,
        mid_ch: int,
        out_ch: int,
        dilated: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.dilated = dilated
        *dilation, deepest = [2**i if dilated else 1 for i in range(height)]
        self.conv_in = ConvBNReLU(in_ch, out_ch, bias=bias)
        self.encoder = nn.ModuleList(
            ConvBNReLU(mid_ch if i else out_ch, mid_ch, d, bias) for i, d in enumerate(dilation)
        )
        self.bottom = ConvBNReLU(mid_ch, mid_ch, deepest if dilated else 2, bias)
        self.decoder = nn.ModuleList(
            ConvBNReLU(2 * mid_ch, mid_ch if i else out_ch, d, bias)
            for i, d in reversed(list(enumerate(dilation)))
        )
        self.pool = Pool()
        self.upsample = UpsampleLike()

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        residual = h = self.conv_in(x)
        skips: list[Tensor] = []
        for conv in self.encoder:
            if skips and not self.dilated:
                skips[-1], h = self.pool.beside(h)
            h = conv(h)
            skips.append(h)
        h = self.bottom(h)
        for i, conv in enumerate(self.decoder):
            if i and not self.dilated:
                h = self.upsample(h, skips[-1])
            h = conv([h, skips.pop()])
        # In place saves a pass over fresh memory, but would change h where a hook has kept it.
        if self.in_place and not torch.is_grad_enabled():
            return h.add_(residual)
        return h + residual


class RSU4F(RSU):
    """The dilated block of the deepest stages (paper, section 3.2): dilations 1, 2, 4, 8."""

    def __init__(self, in_ch: int, mid_ch: int, out_ch: int, bias: bool = False) -> None:
        super().__init__(4, in_ch, mid_ch, out_ch, dilated=True, bias=bias)


class U2Net(Network):
    """The network of a stage table.

    Args:
        config: a validated table, see :class:`U2NetConfig`.

    Shape: input N×in_ch×H×W float, normalised, any H, W ≥ 32.

    Returns (forward): in training mode a list of logits, the fused map first (if the table has one:
    IS-Net's output is the finest side map), then the side maps from the finest to the coarsest,
    each N×out_ch×H×W. In eval mode the first map as float32 probabilities, N×out_ch×H×W in [0, 1].

    Example:
        >>> from src import LITE
        >>> net = U2Net(LITE).eval()
        >>> net(torch.zeros(1, 3, 253, 317)).shape
        torch.Size([1, 1, 253, 317])
    """

    config_class: ClassVar[type[U2NetConfig]] = U2NetConfig
    config: U2NetConfig

    def __init__(self, config: U2NetConfig) -> None:
        super().__init__(config)

        def block(s: StageConfig) -> RSU:
            return RSU(s.height, s.in_ch, s.mid_ch, s.out_ch, s.dilated, config.conv_bias)

        self.stem = _make_stem(config)
        self.encoder = nn.ModuleList(block(stage) for stage in config.encoder)
        self.decoder = nn.ModuleList(block(stage) for stage in config.decoder)
        self.pool = Pool()
        self.upsample = UpsampleLike()
        stages, self._sides = (*config.encoder, *config.decoder), config.side_stages
        self.sides = nn.ModuleList(
            nn.Conv2d(stages[i].out_ch, config.out_ch, 3, padding=1) for _, i in self._sides
        )
        if config.fuse_sides:
            self.out_conv = nn.Conv2d(len(self.sides) * config.out_ch, config.out_ch, 1)

    @property
    def map_names(self) -> list[str]:
        """The maps' names: ``fused`` if there is one, ``side1`` (finest), ``side2`` …"""
        sides = [f"side{i}" for i in range(1, 1 + len(self.sides))]
        return ["fused", *sides] if self.config.fuse_sides else sides

    @property
    def stride(self) -> int:
        """Downsampling factor of the coarsest map inside the network, per side."""
        return self.config.stride

    def logits(self, x: Tensor) -> list[Tensor]:
        """The list that training mode returns, in either mode."""
        return self.maps_and_features(x)[0]

    def maps_and_features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of :meth:`logits`, and the features that the side outputs read, from the finest
        to the coarsest: each the N×C×h×w output of its stage. IS-Net's supervision compares these.

        Example:
            >>> from src import LITE
            >>> _, features = U2Net(LITE).maps_and_features(torch.zeros(2, 3, 64, 64))
            >>> [tuple(f.shape[1:]) for f in features[:2]]
            [(64, 64, 64), (64, 32, 32)]
        """
        h = x if self.stem is None else self.stem(x)
        skips: list[Tensor] = []
        for stage in self.encoder:
            if skips:
                skips[-1], h = self.pool.beside(h)
            h = self.run(stage, h)
            skips.append(h)
        # Keep only what is read again, so that the rest is freed early: at the last stages, maps
        # are large.
        read = {i: skips[i] for _, i in self._sides if i < len(skips)}
        skips.pop()
        # An encoder alone has no decoder stages.
        for i, stage in enumerate(self.decoder, len(self.encoder)):
            h = self.run(stage, [self.upsample(h, skips[-1]), skips.pop()])
            read[i] = h
        features = [read[i] for _, i in self._sides]
        maps = []
        for conv, feature, (level, _) in zip(self.sides, features, self._sides, strict=True):
            side = conv(feature)
            maps.append(self.upsample(side, x) if level or self.stem is not None else side)
        if self.config.fuse_sides:
            maps = [self.out_conv(torch.cat(maps, dim=1)), *maps]
        return maps, features


def _make_stem(config: U2NetConfig) -> nn.Module | None:
    stem = config.stem
    if stem is None:
        return None
    if stem.norm:
        return ConvBNReLU(stem.in_ch, stem.out_ch, bias=config.conv_bias, stride=2)
    return Conv2d(stem.in_ch, stem.out_ch, 3, stride=2, padding=1)
