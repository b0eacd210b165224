"""Network layers that use the kernels where they can."""

import torch
from torch import Tensor, nn

from src.compat import has_hooks
from src.networks.u2net import ConvBNReLU, Pool, UpsampleLike

from .functions import bn_relu, pool_beside, resize, takes, takes_norm
from .library import load


def use_kernels(model: nn.Module, device: torch.device) -> None:
    """Make a network's layers, in place, use the kernels while it trains on the CPU.

    Modules, weights and their names stay the same. Batch norm sums in another order, and more
    precisely than torch's; resizing and pooling give the same numbers. Where the kernels do not
    apply (in eval mode, compiled, traced, other dtypes, synchronised batch norm, a hook on a layer
    that they would bypass), the layers behave as before.
    """
    if device.type != "cpu" or load() is None:
        return
    for module in model.modules():
        if kind := _KINDS.get(type(module)):
            module.__class__ = kind


class KernelConvBNReLU(ConvBNReLU):
    """Fused batch norm and ReLU."""

    def activate(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        bn, relu = self.bn, self.relu
        plain = self.training and type(relu) is nn.ReLU and not (has_hooks(bn) or has_hooks(relu))
        if plain and takes(x) and takes_norm(bn, x):
            return bn_relu(x, bn, other)
        return super().activate(x, other)


class KernelUpsample(UpsampleLike):
    """Resizing whose gradient is gathered, not scattered."""

    def forward(self, x: Tensor, ref: Tensor) -> Tensor:
        if self.training and takes(x):
            return resize(x, (ref.shape[2], ref.shape[3]))
        return super().forward(x, ref)


class KernelPool(Pool):
    """Pooling that keeps no indices."""

    def beside(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return pool_beside(x) if self.training and takes(x) else super().beside(x)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {
    ConvBNReLU: KernelConvBNReLU,
    UpsampleLike: KernelUpsample,
    Pool: KernelPool,
}
