"""AdamW without decay on norms and biases, or Muon; warm-up, then cosine."""

from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from src.compat import copy_all
from src.device import pick_dtype

OPTIMIZERS = ("adamw", "muon")
MUON_CHANNELS = 8
"""The least input and output channels of kernels that Muon updates."""


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float, name: str = "adamw"
) -> Optimizer:
    """Fused AdamW, or :class:`Muon`, of a network's trainable parameters.

    Vectors (batch norm, biases) are not decayed: that would only shift activations.

    Args:
        model: the network, on its device.
        lr: learning rate of all groups.
        weight_decay: of matrices and kernels.
        name: "adamw" or "muon".
    """
    kernels: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    inner: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            # A kernel with few channels on one side (the image's, a map's) is left to AdamW.
            wide = parameter.ndim == 4 and min(parameter.shape[:2]) >= MUON_CHANNELS
            group = vectors if parameter.ndim <= 1 else inner if wide else kernels
            group.append(parameter)
    if name == "adamw":
        inner, kernels = [], inner + kernels
    groups: list[dict[str, Any]] = [
        {"params": kernels, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    if name == "adamw":
        return AdamW(groups, lr=lr, fused=fused)
    inner_group = {"params": inner, "weight_decay": weight_decay, "orthogonal": True}
    return Muon([*groups, inner_group], lr=lr, fused=fused)


class Muon(AdamW):
    """Muon for the groups marked ``orthogonal``, AdamW for the others.

    The momentum of a kernel, as a matrix of out × (in · height · width), is replaced by the nearest
    matrix whose singular values are all equal, so that every direction of the kernel learns, not
    only the few that dominate its gradient. Updates are scaled to the mean square of AdamW's, so
    that both can share one learning rate and weight decay.

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the
    scale is that of Liu et al. 2025, "Muon is scalable for LLM training".

    Args:
        groups: as for AdamW; Muon updates the kernels of groups with ``orthogonal=True``.
        lr: learning rate.
        fused: as for AdamW.

    Example:
        >>> kernel = nn.Parameter(torch.zeros(2, 2, 1, 1))
        >>> kernel.grad = torch.tensor([[1.0, 0.0], [0.0, 0.01]])[..., None, None]
        >>> Muon([{"params": [kernel], "orthogonal": True}], lr=1.0).step()
        >>> bool(kernel[1, 1] < -0.1)  # the small gradient counts like the large one
        True
    """

    MOMENTUM = 0.95

    def __init__(self, groups: list[dict[str, Any]], lr: float, fused: bool = False) -> None:
        groups = [{"orthogonal": False, **group} for group in groups]
        super().__init__(groups, lr=lr, fused=fused)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step; the gradients of Muon's kernels are consumed."""
        for group in self.param_groups:
            if group["orthogonal"]:
                self._step_kernels(group)
                for kernel in group["params"]:
                    kernel.grad = None  # AdamW skips what has no gradient
        super().step()

    def _step_kernels(self, group: dict[str, Any]) -> None:
        # Batch kernels of the same shape: a network has dozens of small ones.
        alike: dict[torch.Size, list[Tensor]] = {}
        for kernel in group["params"]:
            if kernel.grad is not None:
                alike.setdefault(kernel.shape, []).append(kernel)
        for shape, kernels in alike.items():
            stacked = torch.stack([self._look_ahead(kernel) for kernel in kernels]).flatten(2)
            # In bfloat16 where that is fast: a few rough iterations need no more precision.
            dtype = pick_dtype("auto", stacked.device)
            matrices = orthogonalize(stacked.to(dtype)).float()
            scale = 0.2 * max(matrices.shape[1:]) ** 0.5
            decay = 1 - group["lr"] * group["weight_decay"]
            for kernel, update in zip(kernels, matrices.view(len(kernels), *shape), strict=True):
                kernel.mul_(decay).add_(update, alpha=-group["lr"] * scale)

    def _look_ahead(self, kernel: Tensor) -> Tensor:
        """Update a kernel's momentum; returns the gradient with Nesterov momentum."""
        state, gradient = self.state[kernel], cast(Tensor, kernel.grad)
        if not state:
            state["step"] = torch.zeros(())  # AdamW expects it when it loads a state
            state["momentum"] = torch.zeros_like(kernel)
        state["momentum"].lerp_(gradient, 1 - self.MOMENTUM)
        return gradient.lerp(state["momentum"], self.MOMENTUM)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors, and singular values between 0.7 and 1.2.

    Five steps of a Newton-Schulz iteration; values below about 1/1000 of a matrix's norm stay
    smaller.

    Args:
        matrices: ...×M×N.
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    wide = wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        square = wide @ wide.mT
        wide = 3.4445 * wide + (2.0315 * square @ square - 4.775 * square) @ wide
    return wide.mT if matrices.shape[-2] > matrices.shape[-1] else wide


def make_scheduler(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LRScheduler:
    """Linear from 1/1000 over ``warmup_steps``, then cosine to 1/1000 at ``total_steps``."""
    warmup_steps = min(warmup_steps, total_steps // 2)
    peak = optimizer.param_groups[0]["lr"]
    rest = CosineAnnealingLR(optimizer, max(1, total_steps - warmup_steps), eta_min=peak * 1e-3)
    if not warmup_steps:
        return rest
    warmup = LinearLR(optimizer, 1e-3, total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, rest], milestones=[warmup_steps])


class MovingAverage(AveragedModel):
    """An exponential moving average of weights and batch norm statistics; counters are copied.

    Early on the decay is (1 + n) / (10 + n) after n updates, so that the average of a short run
    doesn't drag its first, random weights along.

    Args:
        model: whose weights to average.
        decay: of the average in each update, in [0, 1).

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> average = MovingAverage(layer, decay=0.9)
        >>> average.update_parameters(layer)
        >>> bool(average.module.weight == layer.weight)
        True
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the model's present weights to the average; unlike torch's own, without making a GPU
        wait for the count of updates.
        """
        count = self.n_averaged.item()  # on the CPU
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        tensors = (chain(net.parameters(), net.buffers()) for net in (self.module, model))
        pairs = list(zip(*tensors, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counters = [pair for pair in pairs if not pair[0].is_floating_point()]
        get_ema_multi_avg_fn(decay)(*map(list, zip(*floats, strict=True)), count)
        if counters:
            copy_all(*map(list, zip(*counters, strict=True)))
        self.n_averaged += 1


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Loss scaling for float16; for float32 and bfloat16, which need none, it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
