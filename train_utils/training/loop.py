"""The training loop: epochs, evaluation, what is written when, and how a run stops."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from src import Predictor, UserError, save_model
from src.device import amp_name

from ..distributed import gather, is_main, on_any_rank, share_buffers, sum_over_ranks, world_size
from .checkpoint import save_checkpoint
from .losses import map_names
from .records import Records, peak_memory
from .tasks import Classes, Saliency
from .trainer import Batch, Step, Trainer

BAD_STEPS = 3  # so many in a row whose loss or gradient is not finite end the run
_SHOWN_EVERY = 10  # optimizer steps between looks at the ranks' mean loss and at signals


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came; the step was finished and last.pt written. Holds the signal."""


@dataclass(frozen=True)
class Plan:
    """How long a run goes and when it stops to look and to save.

    Args:
        epochs: passes over the training split.
        accum: batches per optimizer step.
        eval_interval: epochs between evaluations.
        save_every: optimizer steps between checkpoints; 0 for the end of each epoch alone.
        keep: how many checkpoints to leave in the folder.
        task: how maps are scored and shown; by its first measure on the pictures held out, of the
            average if there is one, the best weights are kept.
    """

    epochs: int
    accum: int = 1
    eval_interval: int = 1
    save_every: int = 0
    keep: int = 2
    task: Saliency | Classes = field(default_factory=Saliency)

    def saves_after(self, updates: int) -> bool:
        """Whether a checkpoint is due after so many optimizer steps."""
        return self.save_every > 0 and updates % self.save_every == 0


def fit(trainer: Trainer, train: DataLoader, test: DataLoader, folder: Path, plan: Plan) -> None:
    """Train to ``plan.epochs``, evaluating and writing ``folder`` as it goes.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with last.pt written.
        UserError: too many bad steps in a row.
    """
    records = Records(folder, trainer.epoch, trainer.updates) if is_main() else None
    try:
        with _signals_noted() as caught:
            _Run(trainer, train, test, folder, plan, records, caught).go()
    finally:
        if records:
            records.close()


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM only put their number on the list, so that a step is never torn; one more
    Ctrl-C ends the program at once.
    """
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Run:
    trainer: Trainer
    train: DataLoader
    test: DataLoader
    folder: Path
    plan: Plan
    records: Records | None  # rank 0's
    caught: list[int]  # signals
    speed: float = 0.0  # pictures per second of the last epoch

    def go(self) -> None:
        trainer, plan = self.trainer, self.plan
        while trainer.epoch < plan.epochs:
            row = self._train_epoch()
            if row and (trainer.epoch % plan.eval_interval == 0 or trainer.epoch == plan.epochs):
                row |= self._evaluate()
            if row and self.records:
                self.records.epoch(row, trainer.updates)
                tqdm.write(f"{_line(row, plan)}, {self.speed:.1f} pictures/s")
            self._save()
            if trainer.epoch < plan.epochs and on_any_rank(bool(self.caught), trainer.device):
                raise Interrupted(self.caught[0] if self.caught else signal.SIGTERM)

    def _save(self) -> None:
        state = self.trainer.state_dict()  # of all ranks together
        if is_main():
            save_checkpoint(self.folder, state, self.plan.keep)

    def _train_epoch(self) -> dict[str, Any]:
        """The rest of the running epoch; its log row, empty if a signal came before the end."""
        trainer, sampler = self.trainer, self.train.batch_sampler
        trainer.train_mode()
        sampler.epoch, sampler.start = trainer.epoch, trainer.step
        if not trainer.step:
            trainer.sums.zero_()
        total = len(sampler)
        batches = iter(self.train)
        with _Progress(trainer, total, self.plan.epochs, self.records) as progress:
            while True:
                # Ranks must stop together; asking makes a GPU wait, so GPUs ask now and then.
                at_end = trainer.step >= total
                ask = trainer.device.type != "cuda" or trainer.updates % _SHOWN_EVERY == 0
                if (ask or at_end) and on_any_rank(bool(self.caught), trainer.device):
                    return {}  # at the end too: scoring may take longer than a job's last seconds
                if at_end:
                    break
                group = list(islice(batches, self.plan.accum))
                step = trainer.train_step(group)
                trainer.add(step)
                if trainer.bad_steps and not step.taken:
                    self._tell_bad_step(step, group)
                progress.advance(group, trainer.lr_taken)
                if trainer.step < total and self.plan.saves_after(trainer.updates):
                    self._save()
            self.speed = progress.speed()
        trainer.epoch, trainer.step = trainer.epoch + 1, 0
        losses = _mean_losses(sum_over_ranks(trainer.sums, trainer.device))
        return {"epoch": trainer.epoch, "lr": trainer.lr_taken, **losses}

    def _tell_bad_step(self, step: Step, group: list[Batch]) -> None:
        """Name the step and its pictures; the end of the run where it was one too many."""
        trainer, pairs = self.trainer, self.train.dataset.pairs
        told = gather(
            [(x.item(), b[2].tolist()) for x, b in zip(step.losses[:, 0], group, strict=True)]
        )
        batches = [batch for rank in told for batch in rank]
        # Those whose own loss is at fault; all where only the gradient is.
        wrong = [batch for batch in batches if not math.isfinite(batch[0])] or batches
        names = ", ".join(pairs[i].name for _, indices in wrong for i in indices)
        message = (
            f"epoch {trainer.epoch + 1}, batch {trainer.step}: loss {wrong[0][0]:g}, "
            f"gradient norm {step.norm:g} at a learning rate of {trainer.lr_taken:.3g}; "
            f"pictures: {names}"
        )
        if trainer.bad_steps >= BAD_STEPS:
            raise UserError(
                f"{message}. {BAD_STEPS} such steps in a row end the run; checkpoints stay as they "
                f"were. Look at the pictures, or begin a new run with --pretrained {self.folder}/"
                "last.pt and a lower --lr, --clip-grad 1 or --amp off"
            )
        if is_main():
            tqdm.write(f"{message}. Skipped, {trainer.bad_steps} in a row")

    def _evaluate(self) -> dict[str, Any]:
        """Scores of the weights, and of their average; keeps the best and draws samples."""
        trainer, task, row = self.trainer, self.plan.task, {}
        self.test.sampler.epoch = trainer.epoch - 1
        networks = {"": trainer.model}
        if trainer.ema is not None:
            networks["ema_"] = trainer.ema.module
        for prefix, network in networks.items():
            share_buffers(network)
            network.img_size = self.test.dataset.transform.at(trainer.epoch - 1).img_size
            predictor = Predictor(network, device=trainer.device, amp=amp_name(trainer.dtype))
            scores = task.score(predictor, self.test)
            row |= {prefix + name: scores[name] for name in task.logged}
        if self.records:
            samples = _samples(predictor, self.test, trainer.epoch - 1, task)
            self.records.samples(samples, trainer.epoch, trainer.updates)
        criterion = task.told[0]  # of the average, where there is one: networks puts it last
        if scores[criterion] > trainer.best.get(criterion, -1.0):
            trainer.best = {n: scores[n] for n in task.told} | {"epoch": trainer.epoch}
            if is_main():
                save_model(network, self.folder / "best.pt", epoch=trainer.epoch, scores=scores)
        return row


class _Progress:
    """The bar of an epoch, and TensorBoard's curves within it: the ranks' mean of the last steps.

    Use it in a ``with`` block, which ends the bar.
    """

    def __init__(self, trainer: Trainer, total: int, epochs: int, records: Records | None) -> None:
        self.trainer, self.records = trainer, records
        self.before, self.pictures, self.began = trainer.sums.clone(), 0, time.perf_counter()
        self.all_pictures, self.start = 0, self.began
        self.bar = tqdm(
            desc=f"epoch {trainer.epoch + 1}/{epochs}",
            total=total,
            initial=trainer.step,
            disable=None if is_main() else True,
            leave=False,
        )

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, group: list[Batch], lr: float) -> None:
        """After each optimizer step, on all ranks."""
        pictures = sum(len(batch[0]) for batch in group) * world_size()
        self.pictures, self.all_pictures = self.pictures + pictures, self.all_pictures + pictures
        self.bar.update(len(group))
        if self.trainer.updates % _SHOWN_EVERY:
            return
        recent = sum_over_ranks(self.trainer.sums - self.before, self.trainer.device)
        rate = self.pictures / (time.perf_counter() - self.began)
        losses = _mean_losses(recent)
        self.bar.set_postfix_str(f"loss {losses['loss']:.3f}, lr {lr:.1e}, {rate:.1f} pictures/s")
        if self.records:
            others = {
                "lr": lr,
                "pictures per s": rate,
                "peak MiB": peak_memory(self.trainer.device),
            }
            curves = {f"step/{name}": value for name, value in {**losses, **others}.items()}
            self.records.scalars(curves, self.trainer.updates)
        self.before, self.pictures, self.began = self.trainer.sums.clone(), 0, time.perf_counter()

    def speed(self) -> float:
        """Pictures per second of all ranks since the epoch began, or was gone on with."""
        return self.all_pictures / (time.perf_counter() - self.start)


def _mean_losses(sums: Tensor) -> dict[str, float]:
    """Of the sums that :meth:`Trainer.add` gathers, over all ranks: the means, by name."""
    total, *terms = (sums[1:] / sums[0]).tolist()
    names = [f"loss_{name}" for name in map_names(len(terms))]
    return {"loss": total, **dict(zip(names, terms, strict=True))}


def _samples(
    predictor: Predictor, test: DataLoader, epoch: int, task: Saliency | Classes
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    indices = range(0, len(test.dataset), max(1, len(test.dataset) // 8))[:8]
    pictures, masks, _ = zip(*(test.dataset[epoch, i] for i in indices), strict=True)
    found = predictor.probabilities(torch.stack(pictures)).cpu()
    return zip(pictures, map(task.show_mask, masks), map(task.show, found), strict=True)


def _line(row: dict[str, Any], plan: Plan) -> str:
    names = ("loss", *(prefix + name for prefix in ("", "ema_") for name in plan.task.told))
    scores = ", ".join(f"{name} {row[name]:.4f}" for name in names if name in row)
    return f"epoch {row['epoch']}/{plan.epochs}: {scores}"
