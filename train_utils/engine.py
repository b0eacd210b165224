"""The training loop: steps, epochs, evaluation, checkpoints, and how a run goes on from one."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm

from src import Predictor, UserError, save_model
from src.images import normalize
from src.weights import load_state

from .checkpoint import save_checkpoint
from .distributed import is_main, on_any_rank, share_buffers, sum_over_ranks, world_size
from .evaluation import evaluate
from .losses import map_names
from .records import Log, draw_curves, save_samples

CRITERION = "max_f"  # what "best" means: the paper's maxF on the test split, of the EMA if there is


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came; the step was finished and last.pt written. Holds the signal."""


@dataclass
class Trainer:
    """A network with all that changes while it trains, and one step of it.

    Args:
        model: the bare network, on its device.
        optimizer, scheduler, scaler: stepped once per optimizer step.
        loss: logits and target → total and terms.
        dtype: of the convolutions (autocast).
        ema: moving average, updated every optimizer step.
        clip_grad: largest gradient norm, 0 for none.
        compile: let torch.compile build the training step's network.
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
    flags: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0  # finished
    step: int = 0  # batches done of the epoch after those
    best: dict[str, float] = field(default_factory=dict)
    sums: Tensor = field(default_factory=lambda: torch.zeros(0))  # of the loss terms, this epoch

    def __post_init__(self) -> None:
        self.device = next(self.model.parameters()).device
        self.net = self.model
        if world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.net = DistributedDataParallel(self.model, device_ids=ids)
        if self.compile:
            self.net.compile()

    def train_step(self, batches: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """One optimizer step on the mean loss of ``batches`` (several: gradient accumulation).

        Returns the total and each term, float32, mean over the batches, on the device.
        """
        logged = []
        for i, (pictures, masks, _) in enumerate(batches):
            last = i == len(batches) - 1
            quiet = self.net.no_sync() if world_size() > 1 and not last else nullcontext()
            with quiet, torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32):
                pictures = pictures.to(self.device, non_blocking=True)
                masks = masks.to(self.device, non_blocking=True)
                total, terms = self.loss(self.net(normalize(pictures)), masks)
                self.scaler.scale(total / len(batches)).backward()
            logged.append(torch.cat((total.detach()[None], terms)))
        if self.clip_grad:
            self.scaler.unscale_(self.optimizer)  # the norm is of the true gradients
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return torch.stack(logged).mean(0)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on, plus what rebuilds the network."""
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
            "best": self.best,
            "sums": self.sums,
            "rng": torch.random.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            UserError: the network or a flag that the result depends on is another one.
        """
        before = state["flags"]
        changed = [f"{k} was {before.get(k)!r}, is {v!r}" for k, v in self.flags.items()
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
        if self.ema is not None and state["ema"] is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.copy_(state["ema_updates"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], dict(state["best"])
        self.sums = state["sums"].to(self.device)
        torch.random.set_rng_state(state["rng"])


def fit(
    trainer: Trainer,
    train: DataLoader,
    test: DataLoader,
    folder: Path,
    epochs: int,
    accum: int = 1,
    eval_interval: int = 1,
) -> None:
    """Train to ``epochs``, evaluating and writing ``folder`` as it goes.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with last.pt written.
    """
    log = Log(folder / "log.csv", trainer.epoch)
    with _signals_noted() as caught:
        while trainer.epoch < epochs:
            row = _train_epoch(trainer, train, epochs, accum, caught)
            if row and (trainer.epoch % eval_interval == 0 or trainer.epoch == epochs):
                row |= _evaluate(trainer, test, folder)
            if row and is_main():
                log.append(row)
                draw_curves(log, folder / "curves.png")
                tqdm.write(_line(row, epochs))
            _save_last(trainer, folder)
            if trainer.epoch < epochs and on_any_rank(bool(caught), trainer.device):
                raise Interrupted(caught[0] if caught else signal.SIGTERM)


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM only put their number on the list, so that a step is never torn; one more
    Ctrl-C ends the program at once.
    """
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train_epoch(
    trainer: Trainer, loader: DataLoader, epochs: int, accum: int, caught: list[int]
) -> dict[str, Any]:
    """The rest of the running epoch; its log row, empty if a signal was caught before the end."""
    trainer.model.train()
    loader.batch_sampler.epoch, loader.batch_sampler.start = trainer.epoch, trainer.step
    total = len(loader.batch_sampler)
    pictures, began = 0, time.perf_counter()
    bar = tqdm(
        desc=f"epoch {trainer.epoch + 1}/{epochs}",
        total=total,
        initial=trainer.step,
        disable=None if is_main() else True,
        leave=False,
    )
    batches = iter(loader)
    while trainer.step < total:
        # Ranks must stop together; asking makes a GPU wait, so several ask every tenth step only.
        ask = world_size() == 1 or trainer.step % 10 < accum
        if ask and on_any_rank(bool(caught), trainer.device):
            break
        group = list(islice(batches, accum))
        lr = trainer.optimizer.param_groups[0]["lr"]
        terms = trainer.train_step(group)
        terms = terms * len(group)
        trainer.sums = trainer.sums + terms if trainer.step else terms
        trainer.step += len(group)
        pictures += sum(len(batch[0]) for batch in group) * world_size()
        rate = pictures / (time.perf_counter() - began)
        if trainer.step % 10 < accum or trainer.step == total:  # reading a GPU's value waits for it
            loss = trainer.sums[0].item() / trainer.step
            if not math.isfinite(loss):
                raise UserError(_diverged(trainer, loss, lr))
            bar.set_postfix_str(f"loss {loss:.3f}, lr {lr:.1e}, {rate:.1f} pictures/s")
        bar.update(len(group))
    bar.close()
    if trainer.step < total:
        return {}
    means = sum_over_ranks(trainer.sums, trainer.device).cpu() / world_size() / total
    trainer.epoch, trainer.step = trainer.epoch + 1, 0
    losses = dict(zip(map_names(len(means) - 1), means[1:].tolist(), strict=True))
    return {
        "epoch": trainer.epoch,
        "lr": lr,
        "loss": means[0].item(),
        **{f"loss_{name}": value for name, value in losses.items()},
        "pictures_per_s": rate,
    }


def _diverged(trainer: Trainer, loss: float, lr: float) -> str:
    return (
        f"the loss is {loss} in epoch {trainer.epoch + 1}, batch {trainer.step}, at a learning "
        f"rate of {lr:.2g}: lower --lr, or try --clip-grad 1 or --amp off; last.pt is of before"
    )


def _evaluate(trainer: Trainer, test: DataLoader, folder: Path) -> dict[str, Any]:
    """Scores of the weights, and of their average; keeps the best and draws samples."""
    row: dict[str, Any] = {}
    networks = {"": trainer.model}
    if trainer.ema is not None:
        networks["ema_"] = trainer.ema.module
    for prefix, network in networks.items():
        share_buffers(network)
        predictor = Predictor(network, device=trainer.device, amp=_amp_name(trainer.dtype))
        scores = evaluate(predictor, test)
        row |= {prefix + name: scores[name] for name in ("mae", "max_f", "mean_f")}
    if is_main():
        _save_samples(predictor, test, folder / "samples" / f"epoch_{trainer.epoch:04d}.png")
    score = scores[CRITERION]  # the average's, where there is one: networks puts it last
    if score > trainer.best.get(CRITERION, -1.0):
        trainer.best = {CRITERION: score, "mae": scores["mae"], "epoch": trainer.epoch}
        if is_main():
            save_model(network, folder / "best.pt", epoch=trainer.epoch, scores=scores)
    return row


def _amp_name(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "off")


def _save_samples(predictor: Predictor, test: DataLoader, path: Path) -> None:
    indices = range(0, len(test.dataset), max(1, len(test.dataset) // 8))[:8]
    pictures, masks, _ = zip(*(test.dataset[i] for i in indices), strict=True)
    maps = predictor.maps(torch.stack(pictures)).cpu()
    save_samples(zip(pictures, (mask[0] for mask in masks), maps, strict=True), path)


def _save_last(trainer: Trainer, folder: Path) -> None:
    if trainer.step:  # of an unfinished epoch: the mean over ranks, as every rank will load it
        trainer.sums = sum_over_ranks(trainer.sums, trainer.device) / world_size()
    if is_main():
        save_checkpoint(folder / "last.pt", trainer.state_dict())


def _line(row: dict[str, Any], epochs: int) -> str:
    names = ("loss", "mae", "max_f", "ema_mae", "ema_max_f")
    scores = ", ".join(f"{name} {row[name]:.4f}" for name in names if name in row)
    return f"epoch {row['epoch']}/{epochs}: {scores}, {row['pictures_per_s']:.1f} pictures/s"
