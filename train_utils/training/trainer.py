"""A network with all that changes while it trains: one step of it, and its state."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from src import UserError
from src.compat import copy_all
from src.inference.preprocess import normalize
from src.networks.base import BATCH_NORMS
from src.weights.storage import load_state

from ..distributed import gather, rank, world_size
from .gradients import speed_up

Batch = tuple[Tensor, Tensor, Tensor]  # pictures N×3×S×S uint8, masks N×1×S×S uint8, indices N


class Step(NamedTuple):
    """What one optimizer step came to, on the CPU in float64, of this rank."""

    losses: Tensor  # a row a batch: the total, then each term
    norm: float  # of the gradient before clipping, alike on all ranks
    taken: bool  # False: loss or gradient were not finite, and nothing was changed


@dataclass
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
        flags: what the run's result depends on; a resumed run must have the same.
    """

    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    loss: nn.Module
    dtype: torch.dtype
    ema: AveragedModel | None = None
    clip_grad: float = 0.0
    compile: bool = False
    freeze_bn: bool = False
    flags: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0  # finished
    step: int = 0  # batches done of the epoch after those
    bad_steps: int = 0  # not taken, in a row
    best: dict[str, float] = field(default_factory=dict)
    lr_taken: float = 0.0  # the learning rate of the last step
    sums: Tensor = field(init=False)  # of this rank and epoch: batches, total loss, each term

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.net = self.model
        if not self.compile:
            speed_up(self.model, self.device, self.dtype)
        if world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Looking for unused parameters keeps the gradients' order of travel, which DDP would
            # else change after a run's first step: three ranks and more would then add up in
            # another order after a resume.
            same_order = self.device.type == "cpu" and world_size() > 2
            self.net = DistributedDataParallel(
                self.model, device_ids=ids, find_unused_parameters=same_order
            )
        if self.compile:
            self.net.compile()
        self.sums = torch.zeros(2 + self.model.num_maps, dtype=torch.float64)
        # Batch norm's statistics and a copy of when they were sound, by type: one call copies
        # hundreds of small tensors, of one type only.
        buffers = list(self.model.buffers())
        groups = [[b for b in buffers if b.dtype == dtype] for dtype in {b.dtype for b in buffers}]
        self._statistics = [(group, [b.clone() for b in group]) for group in groups]

    @property
    def updates(self) -> int:
        """Optimizer steps since the run began, those not taken too."""
        return self.scheduler.last_epoch

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self.optimizer.param_groups[0]["lr"]

    def train_mode(self) -> None:
        """Layers as they are in training, after an evaluation say."""
        self.model.train()
        for module in self.model.modules() if self.freeze_bn else ():
            if isinstance(module, BATCH_NORMS):
                module.eval()

    def train_step(self, batches: Sequence[Batch]) -> Step:
        """One optimizer step on the mean loss of ``batches`` (several: gradient accumulation).

        Where a loss or the gradient is not finite, weights, moments, average and batch norm's
        statistics stay as they were, on all ranks alike; only the schedule moves on.
        """
        for statistics, sound_ones in self._statistics:
            copy_all(sound_ones, statistics)
        logged = []
        for i, (pictures, masks, _) in enumerate(batches):
            last = i == len(batches) - 1
            quiet = self.net.no_sync() if world_size() > 1 and not last else nullcontext()
            with quiet, torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
                pictures = pictures.to(self.device, non_blocking=True)
                masks = masks.to(self.device, non_blocking=True)
                total, terms = self.loss(self.net(normalize(pictures)), masks)
                # A loss that is not finite spoils its gradient for certain, and by the ranks' mean
                # everybody's: all of them then see it without asking.
                sound = torch.where(total.detach().isfinite(), 1.0, torch.nan)
                self.scaler.scale(total / len(batches) * sound).backward()
            logged.append(torch.cat((total.detach()[None], terms)))
        self.scaler.unscale_(self.optimizer)  # the norm is of the true gradients
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm([p.grad for p in parameters])
        values = torch.cat((torch.stack(logged).flatten(), norm[None])).cpu().double()
        taken = bool(values[-1].isfinite())  # the one moment in a step that waits for a GPU
        if taken:
            if self.clip_grad:
                clip_grads_with_norm_(parameters, self.clip_grad, norm)
            self.scaler.step(self.optimizer)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        else:
            for statistics, sound_ones in self._statistics:
                copy_all(statistics, sound_ones)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.lr_taken = self.lr
        self.scheduler.step()
        return Step(values[:-1].view(len(batches), -1), values[-1].item(), taken)

    def add(self, step: Step) -> None:
        """Count the step: towards the epoch's mean loss where it was taken, else as a bad one.

        float16's scaler expects bad steps and lowers its scale after each; they count as bad once
        that has come below 1.
        """
        self.step += len(step.losses)
        if step.taken:
            self.bad_steps = 0
            self.sums[0] += len(step.losses)
            self.sums[1:] += step.losses.sum(0)
        elif not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            self.bad_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on, plus what rebuilds the network. All ranks ask
        together, as some of it is each rank's own.
        """
        on_gpu = self.device.type == "cuda"
        rng = {"cpu": torch.random.get_rng_state()}
        if on_gpu:
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "model": self.model.state_dict(),
            "config": self.model.config.to_dict(),
            "img_size": self.model.img_size,
            "flags": self.flags,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "ema_updates": self.ema.n_averaged if self.ema else None,
            "epoch": self.epoch,
            "step": self.step,
            "bad_steps": self.bad_steps,
            "lr_taken": self.lr_taken,
            "best": self.best,
            "sums": gather(self.sums),
            "rng": gather(rng),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            UserError: the network or a flag that the result depends on is another one.
        """
        before = state["flags"]
        changed = [f"{_flag(k)} was {before.get(k)!r}, is {v!r}" for k, v in self.flags.items()
                   if before.get(k) != v]  # fmt: skip
        if changed:
            raise UserError(
                f"--resume: not the run that was begun: {'; '.join(changed)}; give the flags it "
                "was begun with, or start a new run from its weights by --pretrained"
            )
        load_state(self.model, state["model"], "--resume")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.copy_(state["ema_updates"])
        self.epoch, self.step, self.bad_steps = state["epoch"], state["step"], state["bad_steps"]
        self.lr_taken = state.get("lr_taken", self.lr)  # none in checkpoints of before
        self.best = dict(state["best"])
        self.sums = state["sums"][rank()]
        rng = state["rng"][rank()]
        torch.random.set_rng_state(rng["cpu"])
        if "cuda" in rng and self.device.type == "cuda":
            torch.cuda.set_rng_state(rng["cuda"], self.device)


def _flag(name: str) -> str:
    """As it is typed; what stands for no flag of its own stays."""
    told = ("pictures", "processes", "precision", "device")
    return name if name in told else f"--{name.replace('_', '-')}"
