"""A network with all that changes while it trains: one step of it, and its state."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from src.compat import copy_all
from src.inference.preprocess import normalize
from src.networks.base import BATCH_NORMS, Network
from src.weights.storage import load_state

from ..distributed import gather, rank, world_size
from .gradients import speed_up

Batch = tuple[Tensor, Tensor, Tensor]
"""Images N×3×S×S uint8, masks N×1×S×S uint8, and indices N."""


class Step(NamedTuple):
    """What one optimizer step came to, on the CPU in float64, of this rank."""

    losses: Tensor  # a row a batch: the total, then each term
    norm: float  # of the gradient before clipping, alike on all ranks
    taken: bool  # False: something was not finite, and nothing was changed


@dataclass(kw_only=True)
class Trainer:
    """A network with all that changes while it trains.

    Args:
        model: the bare network, on its device.
        optimizer, scheduler, scaler: stepped once per optimizer step.
        loss: logits and target → total and terms.
        dtype: of the convolutions (autocast).
        ema: moving average, updated every optimizer step.
        clip_grad: largest gradient norm, 0 for none.
        compile: let torch.compile build the training step's network.
        freeze_bn: batch norm keeps its statistics, and uses them in training too.
        record: what the run's result depends on, kept in its checkpoints.
    """

    model: Network
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    loss: nn.Module
    dtype: torch.dtype
    ema: AveragedModel | None = None
    clip_grad: float = 0.0
    compile: bool = False
    freeze_bn: bool = False
    record: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0  # finished
    batches_done: int = 0  # of the epoch after those
    bad_steps: int = 0  # not taken, in a row
    best: dict[str, float] = field(default_factory=dict)
    last_lr: float = 0.0  # the learning rate of the last step
    sums: Tensor = field(init=False)  # of this rank and epoch: batches, total loss, each term

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        if not self.compile:
            speed_up(self.model, self.device, self.dtype)
        self.net = _share_gradients(self.model, self.device) if world_size() > 1 else self.model
        if self.compile:
            # For each size by itself: inductor fails to build the step for sizes that vary.
            self.net.compile(dynamic=False)
        self.sums = torch.zeros(2 + len(self.loss_names), dtype=torch.float64)
        buffers = list(self.model.buffers())
        self._statistics = [b for b in buffers if b.is_floating_point()]
        # Beside each buffer its value before the step, by type: one call copies hundreds of small
        # tensors, of one type only.
        groups = [[b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}]
        self._kept = [(group, [b.clone() for b in group]) for group in groups]

    @property
    def loss_names(self) -> list[str]:
        """What the terms of the loss are called in logs."""
        return self.model.map_names

    @property
    def updates(self) -> int:
        """Optimizer steps since the run began, those not taken included."""
        return self.scheduler.last_epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def networks(self) -> dict[str, Network]:
        """The network, and its moving average if there is one, by what their scores begin with."""
        networks = {"": self.model}
        if self.ema is not None:
            networks["ema_"] = cast(Network, self.ema.module)
        return networks

    def train_mode(self) -> None:
        """Layers as they are in training, after an evaluation for instance."""
        self.model.train()
        for module in self.model.modules() if self.freeze_bn else ():
            if isinstance(module, BATCH_NORMS):
                module.eval()

    def step(self, batches: Sequence[Batch]) -> Step:
        """One optimizer step on the mean loss of ``batches`` (several: gradient accumulation).

        Where a loss, a statistic of batch norm or the gradient is not finite, weights, moments,
        average and statistics stay as they were, on all ranks alike; only the schedule moves on.
        """
        for buffers, kept in self._kept:
            copy_all(kept, buffers)
        # Add up the gradients of all batches; ranks exchange them once, with the last one.
        last = len(batches) - 1
        logged = [self._backward(b, 1 / len(batches), i == last) for i, b in enumerate(batches)]
        self.scaler.unscale_(self.optimizer)  # the norm is of the true gradients
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        # The one moment in a step that waits for a GPU.
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
        # torch warns where the very first step is not taken, as if calls were in the wrong order.
        with nullcontext() if taken else warnings.catch_warnings(action="ignore"):
            self.scheduler.step()
        step = Step(values[:-1].view(len(batches), -1), values[-1].item(), taken)
        self._count(step)
        return step

    def _backward(self, batch: Batch, share: float, exchange: bool) -> Tensor:
        """Add a batch's share of the gradient; returns the total loss and its terms."""
        images, masks = (part.to(self.device, non_blocking=True) for part in batch[:2])
        alone = isinstance(self.net, DistributedDataParallel) and not exchange
        quiet = self.net.no_sync() if alone else nullcontext()  # type: ignore[operator]
        with quiet, torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
            config = self.model.config
            images = normalize(images, mean=config.mean, std=config.std)
            total, terms = self.loss(self.net(images), masks)
            # What is not finite spoils the gradient for certain, and by the ranks' mean that of
            # each: all of them then see it without asking.
            finite = total.detach().isfinite()
            if exchange and self._statistics:  # they stay infinite once they are
                finite = finite & get_total_norm(self._statistics, torch.inf).isfinite()
            self.scaler.scale(total * share * torch.where(finite, 1.0, torch.nan)).backward()
        return torch.cat((total.detach()[None], terms))

    def _count(self, step: Step) -> None:
        """Count the step: towards the epoch's mean loss where it was taken, else as a bad one.

        float16's scaler expects bad steps and lowers its scale after each; they count as bad once
        that has come below 1.
        """
        self.batches_done += len(step.losses)
        if step.taken:
            self.bad_steps = 0
            self.sums[0] += len(step.losses)
            self.sums[1:] += step.losses.sum(0)
        elif not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            self.bad_steps += 1

    def is_finite(self) -> bool:
        """Whether all weights and statistics are, those of the average included."""
        tensors = [t for net in self.networks.values() for t in net.state_dict().values()]
        floats = [t for t in tensors if t.is_floating_point()]
        return bool(get_total_norm(floats, torch.inf).isfinite())

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to continue, plus what rebuilds the network. All ranks call it
        together, as some of it is each rank's own.
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
        self.last_lr = state.get("lr_taken", self.lr)  # older checkpoints have none
        self.sums = state["sums"][rank()]
        rng = state["rng"][rank()]
        torch.random.set_rng_state(rng["cpu"])
        if "cuda" in rng and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)


def _share_gradients(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    # Looking for unused parameters keeps the order in which gradients travel, which DDP would else
    # change after a run's first step: three ranks and more would then add up in another order
    # after a resume.
    same_order = device.type == "cpu" and world_size() > 2
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=same_order)
