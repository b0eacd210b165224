"""Batches: in a repeatable random order to train, in order and each picture once to evaluate."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .distributed import rank, world_size


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Shuffled batches of (epoch, index), this rank's share.

    The order depends on (seed, epoch) alone. Set ``epoch``, and ``start`` to go on in the middle
    of it. Batches are always full: what is left over of an epoch waits for another one's order,
    and a set smaller than a batch is repeated to fill it.

    Args:
        length: of the data set.
        batch_size: of one rank.
        seed: of the order.
    """

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return max(1, self.length // (self.batch_size * world_size()))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.length, generator=generator)
        wanted = len(self) * self.batch_size * world_size()
        order = order.repeat(-(-wanted // self.length))[:wanted][rank() :: world_size()]
        for batch in order.view(-1, self.batch_size)[self.start :].tolist():
            yield [(self.epoch, index) for index in batch]


class _Share(Sampler[int]):
    """Every world-th index from this rank on: no padding, so no picture counts twice."""

    def __init__(self, length: int) -> None:
        self.indices = range(rank(), length, world_size())

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)


def train_loader(
    dataset: Dataset, batch_size: int, workers: int, seed: int, pin: bool = False
) -> DataLoader:
    """Batches of pictures N×3×S×S uint8, masks N×1×S×S uint8 and indices N.

    Args:
        dataset: items asked for by (epoch, index).
        batch_size: of one rank.
        workers: processes that load; 0 for none beside this one.
        seed: of the order.
        pin: page-locked memory, for the way to a GPU.
    """
    sampler = EpochSampler(len(dataset), batch_size, seed)
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
        collate_fn=collate or _ragged,
        **_options(workers, pin),
    )


def _leave_signals(_: int) -> None:
    """In a loader's process: signals are the trainer's, which finishes its step with this one's
    help. Ctrl-C and torchrun send theirs to the whole process group, so it gets one of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(AttributeError, OSError):  # not on Windows
        os.setpgid(0, 0)


def _options(workers: int, pin: bool) -> dict[str, Any]:
    return {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pin,
        "worker_init_fn": _leave_signals,
        # Of its own: each new iterator draws from it, which would shift the global one's dropout.
        "generator": torch.Generator(),
    }


def _ragged(samples: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, list[Tensor], list[int]]:
    pictures, masks, indices = zip(*samples, strict=True)
    return torch.stack(pictures), list(masks), list(indices)
