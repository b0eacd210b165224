"""The training loop, and how it stops."""

import math
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from src import UserError
from src.words import counted, first_ten

from ..data.dataset import SegmentationDataset
from ..data.loaders import Loader
from ..distributed import gather, is_first, is_main, on_any_rank, sum_over_ranks
from .checkpoint import save_checkpoint
from .records import Progress, Records, mean_losses
from .scoring import Diverged, Task, evaluate_networks, require_finite
from .supervision.fitting import fit_mask_encoder
from .trainer import Batch, Step, Trainer

BAD_STEPS = 3  # this many in a row, with a loss or gradient that is not finite, end the run
_ASK_EVERY = 10  # optimizer steps on a GPU between asking all ranks about signals


class Interrupted(Exception):
    """On Ctrl-C or SIGTERM, after finishing the step and writing last.pt. Holds the signal."""


def fit(
    trainer: Trainer,
    train: Loader[SegmentationDataset],
    test: Loader[SegmentationDataset],
    folder: Path,
    *,
    epochs: int,
    accum: int = 1,
    eval_interval: int = 1,
    save_every: int = 0,
    keep: int = 2,
    task: Task,
    patience: int | None = None,
    trackers: Sequence[str] = ("tensorboard",),
) -> None:
    """Train up to ``epochs``, evaluating and writing to ``folder`` along the way.

    Args:
        trainer: network and optimizer; the loop starts from where they are.
        train: batches of an :class:`~train_utils.data.loaders.EpochSampler`.
        test: the held-out images; the task's first measure on them, of the moving average if there
            is one, selects the best weights.
        folder: the run's.
        epochs: passes over the training split.
        accum: batches per optimizer step.
        eval_interval: epochs between evaluations.
        save_every: optimizer steps between checkpoints; 0: only at the end of each epoch.
        keep: how many checkpoints to keep in the folder.
        task: how maps are scored and drawn.
        patience: stop after this many evaluations in a row without a better score; None: never.
        trackers: where the curves go, see :class:`~.records.trackers.Trackers`.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, with last.pt written.
        Diverged: too many bad steps in a row, or weights or scores that are not finite.
    """
    passed_over: set[int] = set()  # images that cannot be read
    begun = trainer.epoch < epochs and not trainer.has_stopped(patience)
    written = (
        closing(Records(folder, trainer.epoch, trainer.updates, trackers if begun else ()))
        if is_main()
        else nullcontext()
    )
    with _signals_caught() as caught, written as records:
        keeper = _Keeper(trainer, folder, keep, save_every, caught)
        # First train the GT encoder, if its features supervise the network's.
        encoder = trainer.mask_encoder
        if begun and encoder and not encoder.ready:
            limit, check = epochs * -(-len(train.sampler) // accum), keeper.check_encoder
            fit_mask_encoder(
                trainer, encoder, train, accum=accum, limit=limit, bad_steps=BAD_STEPS, check=check
            )
            keeper.save()

        while trainer.epoch < epochs and not trainer.has_stopped(patience):
            trainer.train_mode()
            if not trainer.batches_done:
                trainer.sums.zero_()
            bar = Progress(trainer, len(train.sampler), epochs, records)
            with closing(bar) as progress:
                _fit_epoch(trainer, train, accum, keeper, progress, passed_over)
                speed = progress.speed()

            # Count the epoch, score the networks every eval_interval epochs, keep the best weights.
            # Scoring can take minutes, in which a job may be killed: save the epoch first.
            scored = (trainer.epoch + 1) % eval_interval == 0 or trainer.epoch + 1 == epochs
            if scored:
                keeper.save()
            row = _finish_epoch(trainer, train, passed_over)
            if scored:
                row |= evaluate_networks(trainer, test, folder, task, records)

            # Log the epoch and save.
            if records:
                records.epoch(row, trainer.updates)
                rate = f", {speed:.1f} images/s" if speed else ""  # none: resumed only to score
                tqdm.write(_line(row, epochs, task) + rate)
            keeper.save(replace=scored)
            if trainer.epoch < epochs:
                if trainer.has_stopped(patience):
                    _report_early_stop(trainer, task)
                keeper.stop_at_signal(now=True, saved=True)


@dataclass
class _Keeper:
    """Writes the run's checkpoint when it is due, and when a signal ends the run."""

    trainer: Trainer
    folder: Path
    keep: int  # checkpoints in the folder
    every: int  # optimizer steps between checkpoints within an epoch; 0 for none
    caught: list[int]  # signals received

    def save(self, replace: bool = False) -> None:
        """Write last.pt; ``replace``: overwrite the one of the same step."""
        require_finite(self.trainer)
        state = self.trainer.state_dict()  # of all ranks together
        if is_main():
            save_checkpoint(self.folder, state, self.keep, replace)

    def is_due(self, updates: int) -> bool:
        """Whether a checkpoint is due after this many optimizer steps."""
        return self.every > 0 and updates > 0 and updates % self.every == 0

    def stop_at_signal(self, now: bool, saved: bool = False) -> None:
        """Save, and raise Interrupted, if any rank has received a signal."""
        if stop := _received(self.caught, self.trainer, now):
            if not saved:
                self.save()
            raise Interrupted(stop)

    def check_encoder(self, own: Trainer, at_end: bool) -> None:
        """Save when due, and stop at a signal, while ``own`` trains a GT encoder."""
        stop = _received(self.caught, own, at_end)
        if (stop or at_end or self.is_due(own.updates)) and self.trainer.mask_encoder:
            self.trainer.mask_encoder.training = own.state_dict()
            self.save()
        if stop:
            raise Interrupted(stop)


def _fit_epoch(
    trainer: Trainer,
    train: Loader[SegmentationDataset],
    accum: int,
    keeper: _Keeper,
    progress: Progress,
    passed_over: set[int],
) -> None:
    """Take an epoch's optimizer steps, from its start or from where a checkpoint left it."""
    sampler = train.sampler
    sampler.epoch, sampler.start = trainer.epoch, trainer.batches_done
    batches = iter(train)
    while trainer.batches_done < len(sampler):
        keeper.stop_at_signal(now=False)
        group = list(islice(batches, accum))
        _name_loss(trainer)
        _name_passed_over(train, passed_over)
        step = trainer.step(group)

        # Report a step that was not finite; too many in a row end the run.
        if trainer.bad_steps and not step.taken:
            _report_bad_step(trainer, step, group, train.dataset)
        progress.advance(group)
        if keeper.is_due(trainer.updates) and trainer.batches_done < len(sampler):
            keeper.save()
    keeper.stop_at_signal(now=True)  # before scoring, which may exceed a job's last seconds


def _name_loss(trainer: Trainer) -> None:
    """In a run with a final loss, name the loss whenever it changes: the log's losses are not
    comparable across that point.
    """
    loss = trainer.next_loss
    if trainer.final_loss is not None and loss is not trainer.announced_loss and is_main():
        place = f"epoch {trainer.epoch + 1}, batch {trainer.batches_done + 1}"
        tqdm.write(f"{place}: the loss is {loss.loss} from here on")
    trainer.announced_loss = loss


def _finish_epoch(
    trainer: Trainer, train: Loader[SegmentationDataset], passed_over: set[int]
) -> dict[str, Any]:
    """Count the epoch and name images that any rank could not read; returns its row of the log."""
    for errors in gather(train.errors):
        train.errors |= errors
    _name_passed_over(train, passed_over)
    trainer.epoch, trainer.batches_done = trainer.epoch + 1, 0
    sums = sum_over_ranks(trainer.sums, trainer.device)
    losses = mean_losses(sums, trainer.loss_names)
    return {"epoch": trainer.epoch, "lr": trainer.last_lr, **losses}


def _report_early_stop(trainer: Trainer, task: Task) -> None:
    if is_main():
        name = task.shown[0]
        tqdm.write(
            f"Stopped early: no better score than {name} {trainer.best[name]:.4f} of epoch "
            f"{trainer.best['epoch']} in {counted(trainer.stale, 'evaluation')}"
        )


@contextmanager
def _signals_caught() -> Iterator[list[int]]:
    """Make Ctrl-C and SIGTERM only append their number to the list, so that a step is never cut
    short; another Ctrl-C ends the program at once.
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


def _received(caught: list[int], trainer: Trainer, now: bool) -> int:
    """The signal received on any rank, as all must stop together; 0 for none. Asking makes a GPU
    wait, so on GPUs it is done now and then, or if it has to be known ``now``.
    """
    if trainer.device.type == "cuda" and trainer.updates % _ASK_EVERY and not now:
        return 0
    stopped = on_any_rank(bool(caught), trainer.device)
    return (caught or [signal.SIGTERM])[0] if stopped else 0


def _name_passed_over(train: Loader[SegmentationDataset], known: set[int]) -> None:
    """Name images that could not be read, once each; too many of them end the run."""
    if train.errors.keys() <= known:
        return
    for index in train.errors.keys() - known:
        problem = train.errors[index].args[0]
        if is_first(problem):
            text = f"{problem}: skipped, another image takes its place"
            tqdm.write(text, file=sys.stderr)
    known |= train.errors.keys()
    count = len(train.dataset)
    if len(known) > min(max(10, count // 100), max(1, count // 4)):
        names = first_ten([error.args[0] for error in train.errors.values()])
        advice = "fix these files and continue with {resume} auto"
        raise UserError(f"{len(known)} of {count} images cannot be read: {names}", advice=advice)


def _report_bad_step(
    trainer: Trainer, step: Step, group: list[Batch], dataset: SegmentationDataset
) -> None:
    """Report the step and its images; raises Diverged if it was one too many."""
    losses = zip(step.losses[:, 0].tolist(), (batch[2].tolist() for batch in group), strict=True)
    batches = [batch for of_rank in gather(list(losses)) for batch in of_rank]
    # Batches whose own loss is not finite; all if only the gradient is not.
    faulty = [batch for batch in batches if not math.isfinite(batch[0])] or batches
    names = ", ".join(dataset.pairs[i].name for _, indices in faulty for i in indices)
    message = (
        f"epoch {trainer.epoch + 1}, batch {trainer.batches_done}: loss {faulty[0][0]:g}, gradient "
        f"norm {step.norm:g} at a learning rate of {trainer.last_lr:.3g}; images: {names}"
    )
    if trainer.bad_steps >= BAD_STEPS:
        end = f"{BAD_STEPS} such steps in a row end the run; checkpoints stay as they were"
        raise Diverged(f"{message}. {end}")
    if is_main():
        tqdm.write(f"{message}. Skipped, {trainer.bad_steps} in a row")


def _line(row: dict[str, Any], epochs: int, task: Task) -> str:
    names = ("loss", *(prefix + name for prefix in ("", "ema_") for name in task.shown))
    scores = ", ".join(f"{name} {row[name]:.4f}" for name in names if name in row)
    return f"epoch {row['epoch']}/{epochs}: {scores}"
