"""A network with everything that changes while it trains: one step, and its state."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from src.compat import allow_variants, copy_all
from src.inference.preprocess import normalize
from src.networks.base import BATCH_NORMS, Network
from src.networks.u2net import U2Net
from src.weights.storage import load_state

from ..distributed import gather, rank, world_size
from .gradients import speed_up
from .kernels import use_kernels
from .losses import DeepSupervision
from .supervision import MaskEncoder, Teacher, WithFeatures

Batch = tuple[Tensor, Tensor, Tensor]
"""Images N×3×S×S uint8, masks N×1×S×S uint8, and indices N."""


_VARIANTS = 64  # of a compiled step: image sizes, with the encoder frozen or not


class Step(NamedTuple):
    """The result of one optimizer step on this rank, on the CPU in float64."""

    losses: Tensor  # one row per batch: the total, then each term
    norm: float  # of the gradient before clipping, the same on all ranks
    taken: bool  # False: something was not finite, and nothing was changed


@dataclass(kw_only=True)
class Trainer:
    """A network with everything that changes while it trains.

    Args:
        model: the bare network, on its device.
        optimizer, scheduler, scaler: stepped once per optimizer step.
        loss: logits and target → total and terms.
        final_loss: the same, from the step that ``schedule`` calls ``final``.
        dtype: of the convolutions (autocast).
        ema: moving average, updated every optimizer step.
        clip_grad: largest gradient norm, 0 for none.
        compile: compile the training step's network with torch.compile.
        freeze_bn: batch norm keeps its statistics, and uses them in training too.
        encoder: parts of the network whose weights and statistics are frozen …
        frozen_epochs: … for this many epochs at the start.
        teacher: its maps are targets too.
        mask_encoder: its features supervise those of the network.
        read: turns images into the network's input; None: normalises by its own mean and std.
        record: what the run's result depends on, kept in its checkpoints.
    """

    model: Network
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    loss: nn.Module
    dtype: torch.dtype
    final_loss: DeepSupervision | None = None
    ema: AveragedModel | None = None
    clip_grad: float = 0.0
    compile: bool = False
    freeze_bn: bool = False
    encoder: Sequence[nn.Module] = ()
    frozen_epochs: float = 0
    teacher: Teacher | None = None
    mask_encoder: MaskEncoder | None = None
    read: Callable[[Tensor], Tensor] | None = None
    record: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0  # finished
    batches_done: int = 0  # of the current epoch
    bad_steps: int = 0  # not taken, in a row
    best: dict[str, float] = field(default_factory=dict)
    stale: int = 0  # evaluations in a row without a better score
    schedule: dict[str, Any] = field(default_factory=dict)  # the current one, see build/schedule.py
    updates_before: int = 0  # optimizer steps before the schedule began
    last_lr: float = 0.0  # the learning rate of the last step
    announced_loss: nn.Module | None = None  # the one last reported to the user
    sums: Tensor = field(init=False)  # of this rank and epoch: batches, total loss, each term

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        if not self.compile:
            speed_up(self.model, self.device, self.dtype)
            use_kernels(self.model, self.device)
        self._wrap()
        self.sums = torch.zeros(2 + len(self.loss_names), dtype=torch.float64)
        buffers = list(self.model.buffers())
        self._statistics = [b for b in buffers if b.is_floating_point()]
        # Buffers and copies of their values before the step, grouped by dtype: one call copies
        # hundreds of small tensors, but of one dtype only.
        groups = [[b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}]
        self._kept = [(group, [b.clone() for b in group]) for group in groups]

    def _wrap(self) -> None:
        """Build the module that computes a step: the network, with its features if needed, in DDP,
        compiled.
        """
        net: nn.Module = self.model
        if self.mask_encoder is not None:
            net = WithFeatures(cast(U2Net, net))
        self.net = _share_gradients(net, self.device) if world_size() > 1 else net
        if self.compile:
            # Once for each size: inductor fails to build the step for dynamic sizes.
            allow_variants(_VARIANTS)
            self.net.compile(dynamic=False)

    @property
    def loss_names(self) -> list[str]:
        """The names of the loss's terms in logs."""
        return [*self.model.map_names, *(self.mask_encoder.names if self.mask_encoder else ())]

    @property
    def updates(self) -> int:
        """Optimizer steps since the run began, those not taken included."""
        return self.updates_before + self.scheduler.last_epoch

    @property
    def next_loss(self) -> nn.Module:
        """The loss of the next step."""
        final = self.final_loss
        return self.loss if final is None or self.updates < self.schedule["final"] else final

    def has_stopped(self, patience: int | None) -> bool:
        """Whether ``patience`` evaluations in a row have brought no better score."""
        return patience is not None and self.stale >= patience

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def networks(self) -> dict[str, Network]:
        """The network, and its moving average if there is one, by the prefix of their scores."""
        networks = {"": self.model}
        if self.ema is not None:
            networks["ema_"] = cast(Network, self.ema.module)
        return networks

    def train_mode(self) -> None:
        """Set layers to training mode, after an evaluation for instance; to be called at the start
        of each epoch, as the encoder may be frozen in the first ones.
        """
        self.model.train()
        frozen = self.epoch < self.frozen_epochs
        parts = [self.model] if self.freeze_bn else self.encoder if frozen else ()
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, BATCH_NORMS):
                module.eval()
        parameters = [p for part in self.encoder for p in part.parameters()]
        if any(p.requires_grad == frozen for p in parameters):
            for parameter in parameters:
                parameter.requires_grad_(not frozen)
            self._wrap()  # DDP only knows parameters that required gradients when it was made

    def step(self, batches: Sequence[Batch]) -> Step:
        """One optimizer step on the mean loss of ``batches`` (several: gradient accumulation).

        If a loss, a statistic of batch norm or the gradient is not finite, weights, moments,
        average and statistics stay as they were, on all ranks; only the schedule moves on.
        """
        for buffers, kept in self._kept:
            copy_all(kept, buffers)
        # Accumulate the gradients of all batches; ranks exchange them once, with the last one.
        last = len(batches) - 1
        logged = [self._backward(b, 1 / len(batches), i == last) for i, b in enumerate(batches)]
        self.scaler.unscale_(self.optimizer)  # the norm is of the true gradients
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        # The only point in a step that waits for the GPU, besides a teacher's check of its maps.
        values = torch.cat((torch.stack(logged).flatten(), norm[None])).cpu().double()
        taken = bool(values[-1].isfinite())
        if taken:
            if self.clip_grad:
                clip_grads_with_norm_(parameters, self.clip_grad, norm)
            self.scaler.step(self.optimizer)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        else:
            for buffers, kept in self._kept:
                copy_all(buffers, kept)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.last_lr = self.lr
        # If the very first step is not taken, torch warns as if calls were in the wrong order.
        with nullcontext() if taken else warnings.catch_warnings(action="ignore"):
            self.scheduler.step()
        step = Step(values[:-1].view(len(batches), -1), values[-1].item(), taken)
        self._count(step)
        return step

    def _backward(self, batch: Batch, share: float, exchange: bool) -> Tensor:
        """Add a batch's share of the gradient; returns the total loss and its terms."""
        images, masks, indices = (part.to(self.device, non_blocking=True) for part in batch)
        taught = (self.teacher(images, indices),) if self.teacher else ()
        alone = isinstance(self.net, DistributedDataParallel) and not exchange
        quiet = self.net.no_sync() if alone else nullcontext()  # type: ignore[operator]
        with quiet, torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            config = self.model.config
            read = self.read or partial(normalize, mean=config.mean, std=config.std)
            outputs = self.net(read(images))
            if self.mask_encoder is None:
                total, terms = self.next_loss(outputs, masks, *taught)
            else:
                maps, features = outputs
                total, terms = self.next_loss(maps, masks, *taught)
                distances = self.mask_encoder.compare(features, masks)
                total, terms = total + distances.sum(), torch.cat((terms, distances.detach()))
            # Anything not finite makes the gradient nan, and through the mean over ranks that of
            # every rank: all of them see it without further communication.
            finite = total.detach().isfinite()
            if exchange and self._statistics:  # once not finite, they stay so
                finite = finite & get_total_norm(self._statistics, torch.inf).isfinite()
            self.scaler.scale(total * share * torch.where(finite, 1.0, torch.nan)).backward()
        return torch.cat((total.detach()[None], terms))

    def _count(self, step: Step) -> None:
        """Count the step towards the epoch's mean loss if it was taken, else as a bad one.

        The loss scaler of float16 expects bad steps and lowers its scale after each; they count as
        bad only once it is below 1.
        """
        self.batches_done += len(step.losses)
        if step.taken:
            self.bad_steps = 0
            self.sums[0] += len(step.losses)
            self.sums[1:] += step.losses.sum(0)
        elif not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            self.bad_steps += 1

    def is_finite(self) -> bool:
        """Whether all weights and statistics are finite, those of the average included."""
        tensors = [t for net in self.networks.values() for t in net.state_dict().values()]
        floats = [t for t in tensors if t.is_floating_point()]
        return bool(get_total_norm(floats, torch.inf).isfinite())

    def state_dict(self) -> dict[str, Any]:
        """Everything a run needs to continue, plus what rebuilds the network. All ranks must call
        it together, as parts of it differ between ranks.
        """
        rng = {"cpu": torch.random.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": self.model.state_dict(),
            "config": self.model.config.to_dict(),
            "img_size": self.model.img_size,
            "flags": self.record,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "ema_updates": self.ema.n_averaged if self.ema else None,
            "epoch": self.epoch,
            "step": self.batches_done,
            "bad_steps": self.bad_steps,
            "lr_taken": self.last_lr,
            "best": self.best,
            "stale": self.stale,
            "schedule": self.schedule,
            "updates_before": self.updates_before,
            "mask_encoder": self.mask_encoder.state_dict() if self.mask_encoder else None,
            "sums": gather(self.sums),
            "rng": gather(rng),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises:
            UserError: the state is another network's.
        """
        load_state(self.model, state["model"], "the checkpoint")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.copy_(state["ema_updates"])
        self.epoch, self.batches_done = state["epoch"], state["step"]
        self.bad_steps, self.best = state["bad_steps"], dict(state["best"])
        self.last_lr, self.stale = state["lr_taken"], state["stale"]
        self.schedule, self.updates_before = state["schedule"], state["updates_before"]
        if self.mask_encoder is not None:
            self.mask_encoder.load_state_dict(state["mask_encoder"])
        self.sums = state["sums"][rank()]
        rng = state["rng"][rank()]
        torch.random.set_rng_state(rng["cpu"])
        if "cuda" in rng and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)


def _share_gradients(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    # Searching for unused parameters keeps the order of gradient buckets, which DDP would otherwise
    # change after a run's first step: three or more ranks would then sum in another order after a
    # resume.
    same_order = device.type == "cpu" and world_size() > 2
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=same_order)
