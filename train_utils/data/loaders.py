"""Batches: in a repeatable random order to train, in order and each picture once to evaluate."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from src import UserError

from ..distributed import rank, world_size


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of (epoch, index), this rank's share.

    The order depends on (seed, epoch) alone. Set ``epoch``, and ``start`` to go on in the middle
    of it. Batches are always full: what is left over of an epoch waits for another one's order,
    and too few pictures for a batch are repeated to fill it.

    Args:
        lengths: of the data sets that follow one another, in pictures.
        batch_size: of one rank.
        seed: of the order.
        shares: how often an epoch takes each picture of each set: 2 is twice, 0.5 every other one,
            chosen anew in each epoch. 1 for each if None.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        shares: Sequence[float] | None = None,
    ) -> None:
        self.lengths = lengths
        self.shares = shares or [1.0] * len(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0
        self.pictures = sum(map(_taken, lengths, self.shares))

    def __len__(self) -> int:
        return max(1, self.pictures // (self.batch_size * world_size()))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order, first = [], 0
        for length, share in zip(self.lengths, self.shares, strict=True):
            taken = _taken(length, share)
            rounds = [torch.randperm(length, generator=generator) for _ in range(0, taken, length)]
            order.append(first + torch.cat(rounds)[:taken])
            first += length
        order = torch.cat(order)
        if len(self.lengths) > 1:
            order = order[torch.randperm(len(order), generator=generator)]
        wanted = len(self) * self.batch_size * world_size()
        order = order.repeat(-(-wanted // len(order)))[:wanted][rank() :: world_size()]
        for batch in order.view(-1, self.batch_size)[self.start :].tolist():
            yield [(self.epoch, index) for index in batch]


def _taken(length: int, share: float) -> int:
    """Pictures that an epoch takes of a set."""
    return max(1, round(length * share))


class _Share(Sampler[tuple[int, int]]):
    """(epoch, index), each world-th index from this rank on: no padding, so no picture counts
    twice. Set ``epoch`` where the preset depends on it.
    """

    def __init__(self, length: int) -> None:
        self.indices = range(rank(), length, world_size())
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((self.epoch, index) for index in self.indices)


def train_loader(
    dataset: Dataset, sampler: EpochSampler, workers: int, pin: bool = False
) -> DataLoader:
    """Batches of pictures N×3×S×S uint8, masks N×1×S×S uint8 and indices N.

    Args:
        dataset: items asked for by (epoch, index).
        sampler: of the batches.
        workers: processes that load; 0 for none beside this one.
        pin: page-locked memory, for the way to a GPU.
    """
    return DataLoader(dataset, batch_sampler=sampler, **_options(workers, pin))


def eval_loader(
    dataset: Dataset,
    batch_size: int,
    workers: int,
    pin: bool = False,
    collate: Callable[[list], Any] | None = None,
) -> DataLoader:
    """This rank's share, in order, each item once.

    Without ``collate``, batches of pictures N×3×S×S uint8, a list of masks 1×H×W, each of its size,
    and a list of indices.
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=_Share(len(dataset)),
        collate_fn=collate or ragged,
        **_options(workers, pin),
    )


def _leave_signals(_: int) -> None:
    """In a loader's process: signals are the trainer's, which finishes its step with this one's
    help. Ctrl-C and torchrun send theirs to the whole process group, so it gets one of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(AttributeError, OSError):  # not on Windows
        os.setpgid(0, 0)


class Tolerant:
    """A loader of :func:`eval_loader` that passes over items with a UserError.

    Args:
        dataset, batch_size, workers, pin, collate: as there.

    ``faults`` gathers, while batches are drawn, the index and the error of each item left out.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        workers: int,
        pin: bool = False,
        collate: Callable[[list], Any] | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.faults: list[tuple[int, str]] = []
        whole = partial(_split_faults, collate=collate or ragged)
        self.loader = eval_loader(_Caught(dataset), batch_size, workers, pin, whole)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch, faults in self.loader:
            self.faults += faults
            if batch is not None:
                yield batch


class _Caught(Dataset):
    """Items, or (index, error) in place of those that raise one."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple:
        try:
            return self.dataset[key]
        except UserError as error:
            return key[1], error.said()


def _split_faults(items: list[tuple], collate: Callable[[list], Any]) -> tuple[Any, list[tuple]]:
    sound = [item for item in items if len(item) == 3]
    return collate(sound) if sound else None, [item for item in items if len(item) == 2]


def _options(workers: int, pin: bool) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pin,
        "worker_init_fn": _leave_signals,
        # Of its own: each new iterator draws from it, which would shift the global one's dropout.
        "generator": torch.Generator(),
    }


def ragged(samples: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, list[Tensor], list[int]]:
    """A batch whose masks keep their sizes."""
    pictures, masks, indices = zip(*samples, strict=True)
    return torch.stack(pictures), list(masks), list(indices)
