"""The progress bar of an epoch, and the mean losses."""

import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ...distributed import no_bar, sum_over_ranks, world_size
from ..trainer import Batch, Trainer
from .writer import Records

_SHOWN_EVERY = 10  # optimizer steps between updates of the display


def peak_memory(device: torch.device) -> float:
    """The peak memory use so far in MiB, of the GPU, or else of the process; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def mean_losses(sums: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Mean losses by name, from :attr:`Trainer.sums` over all ranks.

    Args:
        sums: batches, total loss, each term.
        names: of the terms, :attr:`Trainer.loss_names`.
    """
    total, *terms = (sums[1:] / sums[0]).tolist()
    columns = [f"loss_{name}" for name in names]
    return {"loss": total, **dict(zip(columns, terms, strict=True))}


class Progress:
    """An epoch's progress bar, and the trackers' curves within it: the ranks' mean of recent steps.

    Args:
        trainer: of the run.
        total: batches of an epoch.
        epochs: of the run.
        records: rank 0's, None on the others.
    """

    def __init__(self, trainer: Trainer, total: int, epochs: int, records: Records | None) -> None:
        self.trainer, self.records = trainer, records
        self.images, self.start = 0, time.perf_counter()  # of the epoch
        self.shown = self.images, self.start, trainer.sums.clone()  # at the last update
        self.bar = tqdm(
            desc=f"epoch {trainer.epoch + 1}/{epochs}",
            total=total,
            initial=trainer.batches_done,
            disable=no_bar(),
            leave=False,
        )

    def close(self) -> None:
        """Close the bar."""
        self.bar.close()

    def advance(self, batches: list[Batch]) -> None:
        """Show an optimizer step; to be called on all ranks."""
        self.images += sum(len(batch[0]) for batch in batches) * world_size()
        self.bar.update(len(batches))
        if self.trainer.updates % _SHOWN_EVERY == 0:
            self._show()

    def _show(self) -> None:
        device, lr, now = self.trainer.device, self.trainer.last_lr, time.perf_counter()
        images, then, sums = self.shown
        self.shown = self.images, now, self.trainer.sums.clone()
        sums = sum_over_ranks(self.shown[2] - sums, device)
        losses = mean_losses(sums, self.trainer.loss_names)
        rate = (self.images - images) / (now - then)
        self.bar.set_postfix_str(f"loss {losses['loss']:.3f}, lr {lr:.1e}, {rate:.1f} images/s")
        if self.records:
            values = {"lr": lr, "images/s": rate, "peak MiB": peak_memory(device)}
            curves = {f"step/{name}": value for name, value in {**losses, **values}.items()}
            self.records.scalars(curves, self.trainer.updates)

    def speed(self) -> float:
        """Images per second of all ranks since the epoch began, or was resumed."""
        return self.images / (time.perf_counter() - self.start)
