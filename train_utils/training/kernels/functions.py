"""The kernels as differentiable functions of channels-last maps, see :func:`takes`."""

from functools import lru_cache
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .library import DTYPES, SWITCH, kernel, load

_LAST = torch.channels_last
_Taps = tuple[Tensor, Tensor, int]


def takes(x: Tensor) -> bool:
    """Whether the kernels support such maps, and gradients are needed."""
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype in DTYPES and x.ndim == 4
    if not (plain and torch.is_grad_enabled() and x.shape[1] % 16 == 0 and x.numel()):
        return False
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing()) and load() is not None


def takes_norm(bn: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm2d]:
    """Whether :func:`bn_relu` can replace this batch norm for ``x``."""
    if type(bn) is not nn.BatchNorm2d or bn.num_features != x.shape[1]:
        return False
    parts = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    fits = all(p is not None and p.dtype == torch.float32 and p.is_contiguous() for p in parts)
    return fits and (not bn.training or x.numel() > x.shape[1])  # one value has no variance


def bn_relu(x: Tensor, bn: nn.BatchNorm2d, other: Tensor | None = None) -> Tensor:
    """``relu(bn(x))``, which updates the running statistics of ``bn``. With ``other``, the same of
    ``x + other``, which may overwrite ``x``: nothing else may need ``x``.
    """
    momentum = 0.0 if bn.momentum is None else bn.momentum
    if bn.training and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if bn.momentum is None:
            momentum = 1 / bn.num_batches_tracked.item()
    parts = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    if other is not None and not bn.training:
        x, other = x.add_(other), None
    return _BNReLU.apply(x, other, *parts, momentum, bn.eps, bn.training)


class _BNReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        other: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        momentum: float,
        eps: float,
        of_batch: bool,
    ) -> Tensor:
        x = x.contiguous(memory_format=_LAST)
        y, table = torch.empty_like(x), torch.empty(4, x.shape[1])
        pointers = [part.data_ptr() for part in (weight, bias, mean, variance, table)]
        added = None if other is None else other.contiguous(memory_format=_LAST)
        sizes = _pixels(x)
        maps = [None if m is None else m.data_ptr() for m in (x, added, y)]
        run = kernel("bn_relu", x.dtype, x.shape[1] % 64 == 0)
        run(*maps, *sizes, *pointers, eps, momentum, of_batch, torch.get_num_threads())
        ctx.save_for_backward(x, table)
        ctx.of_batch, ctx.two = of_batch, other is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_graph()
        x, table = ctx.saved_tensors
        dy, dx = dy.contiguous(memory_format=_LAST), torch.empty_like(x)
        to_weight, to_bias = torch.empty(x.shape[1]), torch.empty(x.shape[1])
        maps = [part.data_ptr() for part in (x, dy, dx)]
        pointers = [part.data_ptr() for part in (table, to_weight, to_bias)]
        run = kernel("bn_relu_backward", x.dtype, x.shape[1] % 64 == 0)
        run(*maps, *_pixels(x), *pointers, ctx.of_batch, torch.get_num_threads())
        return dx, dx if ctx.two else None, to_weight, to_bias, *[None] * 5


def _refuse_graph() -> None:
    if torch.is_grad_enabled():  # in a backward pass: with create_graph=True
        text = "the kernels between convolutions have no second derivative"
        raise RuntimeError(f"{text}; {SWITCH}=off leaves everything to torch")


def _pixels(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[1], x.shape[1]


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(x, size, mode="bilinear")``."""
    return _Resize.apply(x, size)


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.sizes = old = tuple(x.shape[2:])
        return _resized(x, size, [_taps(a, b) for a, b in zip(old, size, strict=True)])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        _refuse_graph()
        new = dy.shape[2:]
        back = [_taps(a, b, True) for a, b in zip(ctx.sizes, new, strict=True)]
        return _resized(dy, ctx.sizes, back), None


def _resized(x: Tensor, size: tuple[int, int], taps: list[_Taps]) -> Tensor:
    x = x.contiguous(memory_format=_LAST)
    n, c, height, width = x.shape
    y = torch.empty((n, c, *size), dtype=x.dtype, memory_format=_LAST)
    sides = [v for starts, w, count in taps for v in (starts.data_ptr(), w.data_ptr(), count)]
    run = kernel("resize", x.dtype)
    run(x.data_ptr(), y.data_ptr(), n, height, width, *size, c, *sides, torch.get_num_threads())
    return y


@lru_cache(maxsize=512)
def _taps(old: int, new: int, back: bool = False) -> _Taps:
    """The taps of bilinear resizing along one side: for each new value the first old one that
    contributes, the weights of that and the following ones, and their number. With ``back``, those
    of the backward pass, for each old value's gradient from the new ones'.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        pulses = torch.eye(old).view(1, old, old, 1)
        matrix = F.interpolate(pulses, size=(new, 1), mode="bilinear")[0, ..., 0]
        matrix = matrix if back else matrix.T
        counts = matrix.ne(0).int()
        first, length = counts.argmax(1), matrix.shape[1]
        count = int((length - counts.flip(1).argmax(1) - first).max())
        first = first.clamp(max=length - count)
        weights = matrix.gather(1, first[:, None] + torch.arange(count))
    return first.int().contiguous(), weights.contiguous(), count


def pool_beside(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` and its 2×2 max pooling, sizes rounded up; the gradients of both reach ``x`` as one."""
    return _PoolBeside.apply(x)


class _PoolBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        values = x.contiguous(memory_format=_LAST)
        n, c, height, width = x.shape
        size = (n, c, (height + 1) // 2, (width + 1) // 2)
        y = torch.empty(size, dtype=x.dtype, memory_format=_LAST)
        _pool(values, values.data_ptr(), y.data_ptr(), None, None, None)
        ctx.save_for_backward(values)
        return x, y

    @staticmethod
    def backward(ctx: Any, beside: Tensor, dy: Tensor) -> Tensor:
        _refuse_graph()
        (x,) = ctx.saved_tensors
        beside, dy = (part.contiguous(memory_format=_LAST) for part in (beside, dy))
        dx = torch.empty_like(x)
        _pool(x, x.data_ptr(), None, dy.data_ptr(), beside.data_ptr(), dx.data_ptr())
        return dx


def _pool(x: Tensor, *pointers: int | None) -> None:
    n, c, height, width = x.shape
    kernel("pool", x.dtype)(*pointers, n, height, width, c, torch.get_num_threads())
