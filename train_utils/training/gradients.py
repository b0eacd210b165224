"""Faster convolution gradients on processors without AVX-512."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from src.inference.fast import has_onednn
from src.networks.u2net import Conv2d

_MIN_CHANNELS = 16  # in and out; with fewer, converting the maps costs what the other kernel saves


def speed_up(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Make a network's convolutions, in place, compute their weight gradients the faster way.

    oneDNN's AVX2 kernel for these is two to four times slower on channels-last maps than on NCHW at
    64 channels, which costs more than converting the maps (``benchmarks/compute/train_step.py``);
    everything else here is faster in channels last. With AVX-512, on a GPU and in bf16 nothing
    changes. Weights, their names and results stay the same, up to the order of summation.
    """
    old = torch.backends.cpu.get_cpu_capability() == "AVX2" and has_onednn()
    if device.type != "cpu" or dtype != torch.float32 or not old:
        return
    for conv in model.modules():
        plain = (
            type(conv) in (nn.Conv2d, Conv2d) and conv.groups == 1 and conv.padding_mode == "zeros"
        )
        if plain and conv.kernel_size != (1, 1) and isinstance(conv.padding, tuple):
            conv.__class__ = TurnedConv2d


class TurnedConv2d(Conv2d):
    """A convolution whose weight gradient is computed on NCHW maps."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wanted = torch.is_grad_enabled() and weight.requires_grad
        if not wanted or min(weight.shape[:2]) < _MIN_CHANNELS:
            return super().convolve(x, weight, bias)
        return _Turned.apply(x, weight, bias, (self.stride, self.padding, self.dilation))


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, dilation = geometry
        ctx.bias_sizes = None if bias is None else [len(bias)]
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, (0, 0), 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors

        def gradients(layout: torch.memory_format, *wanted: bool) -> tuple[Tensor | None, ...]:
            maps = [m.contiguous(memory_format=layout) for m in (grad, x, weight)]
            return torch.ops.aten.convolution_backward(
                *maps, ctx.bias_sizes, *ctx.geometry, False, (0, 0), 1, wanted
            )

        to_x, _, to_bias = gradients(
            torch.channels_last, ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]
        )
        _, to_weight, _ = gradients(torch.contiguous_format, False, True, False)
        return to_x, to_weight, to_bias, None
