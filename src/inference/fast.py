"""Prepares a network for inference in torch: folded, rounded, in its processor's memory layout."""

import platform
from threading import Lock
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..compat import (
    has_packed_convolutions,
    onednn_has_bf16,
    pack_weight,
    packed_convolution,
)
from ..networks.base import Network
from ..networks.u2net import RSU, ConvBNReLU, UpsampleLike


class Backend(Protocol):
    """Computes the maps: a prepared network, or a runtime with its ONNX file.

    Called with normalised images N×3×H×W on its device, it returns probabilities N×out_ch×H×W.
    """

    config: Any
    img_size: int

    def __call__(self, images: Tensor, /) -> Tensor: ...


def prepare(
    model: nn.Module, device: torch.device, dtype: torch.dtype, sizes: int = 1
) -> nn.Module:
    """Put a network in eval mode, in place: batch norm folded, channels last, and on an x86
    processor convolutions of oneDNN, fused with ReLU.

    Inference only: it can no longer be trained, saved or copied. In float32 its results are those
    of ``model.eval()``, except for rounding by the folding.

    Args:
        model: any of the networks.
        device: where it will compute.
        dtype: of the convolutions, see :func:`~..device.pick_dtype`.
        sizes: the number of image sizes for which weights are kept in the best layout.

    Returns:
        The same network.
    """
    model = fold(model, dtype).to(device).to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, RSU):
            module.in_place = True
    if device.type == "cpu" and has_onednn():
        _pack(model, sizes)
    return model


def fold(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Put a network in eval mode, in place: batch norm folded, and rounded to ``dtype``."""
    model = model.fuse() if isinstance(model, Network) else model.eval()
    model.requires_grad_(False)
    if dtype != torch.float32:
        _to_half(model, dtype)
    return model


def has_onednn(dtype: torch.dtype = torch.float32) -> bool:
    """Whether torch computes with oneDNN here, on a processor that it is optimised for.

    That is any x86 in float32; in bfloat16, one with instructions that oneDNN can use.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (x86 and torch.backends.mkldnn.is_available() and has_packed_convolutions()):
        return False
    return dtype == torch.float32 or onednn_has_bf16()


class PackedConv(nn.Module):
    """A convolution with its weights in oneDNN's layout, optionally fused with ReLU.

    torch's own convolution asks oneDNN for that layout in each call. The operators are those that
    ``torch.compile`` generates for a CPU. The best layout depends on the size of the map; for
    another size oneDNN may want another one and then reorders in every call (with AVX2, ten times
    the time for small deep maps). The first call decides for all sizes; if several are expected,
    the layouts for the latest few are kept, and the original weights.
    """

    def __init__(self, conv: nn.Conv2d, activation: str = "none", sizes: int = 1) -> None:
        super().__init__()
        self.dtype = conv.weight.dtype
        self.bias = conv.bias
        self.activation = activation
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.weight: Tensor | None = conv.weight  # of one size, until the first call
        self.packed: dict[tuple[int, ...], Tensor] = {}
        self.sizes = sizes
        self.lock = Lock()

    def forward(self, x: Tensor) -> Tensor:
        size = tuple(x.shape[2:]) if self.sizes > 1 else ()
        packed = self.packed.get(size)
        packed = self._pack(size, list(x.shape)) if packed is None else packed
        return packed_convolution(
            x.to(self.dtype), packed, self.bias, self.geometry, self.activation
        )

    def _pack(self, size: tuple[int, ...], shape: list[int]) -> Tensor:
        with self.lock:
            if size not in self.packed:
                assert self.weight is not None
                while len(self.packed) >= self.sizes:
                    del self.packed[next(iter(self.packed))]
                self.packed[size] = pack_weight(self.weight, self.geometry, shape)
                self.weight = self.weight if self.sizes > 1 else None
            return self.packed[size]


class RowConv(nn.Module):
    """A 3×3 convolution to very few channels (a side output has one), as three rows of 1×3.

    oneDNN computes at least 16 channels at once, so the three rows cost nothing as channels; their
    results are then summed.
    """

    MAX_CHANNELS = 5

    def __init__(self, conv: nn.Conv2d, sizes: int = 1) -> None:
        super().__init__()
        assert conv.bias is not None
        self.bias = conv.bias.view(-1, 1, 1)
        rows = nn.Conv2d(conv.in_channels, 3 * conv.out_channels, (1, 3), padding=1, bias=False)
        weight = conv.weight.permute(2, 0, 1, 3).reshape(rows.weight.shape)
        rows.weight = nn.Parameter(weight, requires_grad=False)
        self.rows = PackedConv(rows, sizes=sizes)

    def forward(self, x: Tensor) -> Tensor:
        above, middle, below = self.rows(x).float().chunk(3, dim=1)
        return above[:, :, :-2] + middle[:, :, 1:-1] + below[:, :, 2:] + self.bias


class Pool2(nn.Module):
    """2×2 max-pooling without the indices of the maxima, which torch stores and nobody reads."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 2 or x.shape[3] % 2:
            return self.pool(x)
        rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
        return torch.maximum(rows[..., ::2], rows[..., 1::2])

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self(x)


class Double(UpsampleLike):
    """Bilinear upsampling; if both sides double, one axis after the other on all cores.

    torch's own upsamples a single image on one core.
    """

    MIN_VALUES = 2**17  # smaller maps are finished before other cores have started

    def forward(self, x: Tensor, ref: Tensor) -> Tensor:
        n, c, h, w = x.shape
        if ref.shape[-2:] != (2 * h, 2 * w) or 4 * x.numel() < self.MIN_VALUES or min(h, w) < 2:
            return super().forward(x, ref)
        last = torch.channels_last
        tall = torch.empty((n, c, 2 * h, w), dtype=x.dtype, memory_format=last)
        both = torch.empty((n, c, 2 * h, 2 * w), dtype=x.dtype, memory_format=last)
        _double(x, tall, dim=2)
        _double(tall, both, dim=3)
        return both


def _double(x: Tensor, out: Tensor, dim: int) -> None:
    """New pixels lie a quarter of the way from an old one to either neighbour; the outermost two
    have only one neighbour."""
    x, out = x.movedim(dim, 0), out.movedim(dim, 0)
    torch.lerp(x[:-1], x[1:], 0.25, out=out[1:-1:2])
    torch.lerp(x[:-1], x[1:], 0.75, out=out[2:-1:2])
    out[0], out[-1] = x[0], x[-1]


def _pack(model: nn.Module, sizes: int) -> None:
    """Replace torch's modules with those above."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MaxPool2d) and _is_two_by_two(child):
                setattr(module, name, Pool2(child))
            elif isinstance(child, UpsampleLike):
                setattr(module, name, Double())
            elif isinstance(child, nn.Conv2d) and _can_pack(child):
                setattr(module, name, _packed(child, module, sizes))


def _is_two_by_two(pool: nn.MaxPool2d) -> bool:
    kernel, stride = pool.kernel_size, pool.stride
    return kernel in (2, (2, 2)) and stride in (2, (2, 2)) and not pool.padding


def _can_pack(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and has_onednn(conv.weight.dtype)


def _packed(conv: nn.Conv2d, parent: nn.Module, sizes: int) -> nn.Module:
    if isinstance(parent, ConvBNReLU) and isinstance(parent.relu, nn.ReLU):
        parent.relu = nn.Identity()
        return PackedConv(conv, "relu", sizes)
    plain = conv.kernel_size == (3, 3) and conv.padding == conv.dilation == conv.stride == (1, 1)
    plain = plain and conv.groups == 1 and conv.bias is not None
    return (RowConv if plain and conv.out_channels <= RowConv.MAX_CHANNELS else PackedConv)(
        conv, sizes=sizes
    )


def _to_half(model: nn.Module, dtype: torch.dtype) -> None:
    """Convert a network to bf16 or fp16, except for the few convolutions that these would ruin.

    A folded bias beyond 128 means a channel with a huge constant in it (the published lite weights
    have one of 226, which the next layer's bias of 1361 removes). bf16 has steps of 1 or more
    there, so the channel's signal would be lost: such layers stay in float32.
    """
    exact = {
        conv
        for conv in model.modules()
        if isinstance(conv, nn.Conv2d) and conv.bias is not None and conv.bias.abs().max() > 128
    }
    for module in model.modules():
        if module not in exact and not list(module.children()):
            module.to(dtype)
        if exact and isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_pre_hook(lambda conv, args: (args[0].to(conv.weight.dtype),))
    for block in model.modules():
        # The output of a residual block is of ordinary size.
        if isinstance(block, RSU) and exact.intersection(block.modules()):
            block.register_forward_hook(lambda block, args, out: out.to(dtype))
