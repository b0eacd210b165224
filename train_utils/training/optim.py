"""AdamW without decay on norms and biases; warm-up, then cosine."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Tensors = tuple[Tensor, ...] | list[Tensor]


def make_optimizer(model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
    """Fused AdamW. Vectors (batch norm, biases) are not decayed: that only shifts activations."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = matrices[0].device.type in ("cpu", "cuda")
    return AdamW(groups, lr=lr, fused=fused)


def make_scheduler(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LRScheduler:
    """Linear from 1/1000 over ``warmup_steps``, then a cosine to 1/1000 at ``total_steps``."""
    warmup_steps = min(warmup_steps, total_steps // 2)
    peak = optimizer.param_groups[0]["lr"]
    rest = CosineAnnealingLR(optimizer, max(1, total_steps - warmup_steps), eta_min=peak * 1e-3)
    if not warmup_steps:
        return rest
    warmup = LinearLR(optimizer, 1e-3, total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, rest], milestones=[warmup_steps])


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of weights and batch norm statistics.

    Early on the decay is (1 + n) / (10 + n) after n updates, so that the average of a short run
    doesn't drag its first, random weights along.
    """

    def average(averages: Tensors, values: Tensors, updates: Tensor | int) -> None:
        count = ema.n_averaged.item()  # on the CPU; reading `updates` would make a GPU wait
        warmed = min(decay, (1 + count) / (10 + count))
        get_ema_multi_avg_fn(warmed)(averages, values, updates)

    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True).requires_grad_(False)
    return ema


def make_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """Loss scaling for float16; for float32 and bfloat16, which need none, it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
