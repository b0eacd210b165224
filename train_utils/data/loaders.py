"""Batches: in a repeatable random order to train, in order and each image once to evaluate."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from src.errors import UserError

from ..distributed import rank, world_size
from .dataset import Sample

Key = tuple[int, int]
"""Epoch and index of an item."""


class Items(Protocol):
    """A data set of known length whose items are asked for by (epoch, index)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Any: ...


ItemsT = TypeVar("ItemsT", bound=Items)
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class LoadError:
    """Stands for an item that could not be loaded, on its way out of a worker process.

    Args:
        index: of the item.
        error: why.
    """

    index: int
    error: UserError


class EpochSampler(Sampler[list[Key]]):
    """Shuffled batches of (epoch, index), this rank's share.

    The order depends on (seed, epoch) alone. Set ``epoch``, and ``start`` to continue in the
    middle of one. All batches are full: the images that don't fill the last one are dropped from
    the epoch (other ones in each), and where there are fewer images than a batch, they repeat.

    Args:
        lengths: of the data sets that follow one another, in images.
        batch_size: images per batch and rank.
        seed: of the order.
        shares: how often an epoch takes each image of each set: 2 is twice, 0.5 every other one,
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
        self.images = sum(map(_taken, lengths, self.shares))

    def __len__(self) -> int:
        return max(1, self.images // (self.batch_size * world_size()))

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        wanted = len(self) * self.batch_size * world_size()
        order = order.repeat(-(-wanted // len(order)))[:wanted][rank() :: world_size()]
        for batch in order.view(-1, self.batch_size)[self.start :].tolist():
            yield [(self.epoch, index) for index in batch]

    def _order(self) -> Tensor:
        """The indices of all images that the epoch takes, shuffled."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        parts, first = [], 0
        for length, share in zip(self.lengths, self.shares, strict=True):
            taken = _taken(length, share)
            rounds = [torch.randperm(length, generator=generator) for _ in range(0, taken, length)]
            parts.append(first + torch.cat(rounds)[:taken])
            first += length
        order = torch.cat(parts)
        if len(parts) > 1:
            order = order[torch.randperm(len(order), generator=generator)]
        return order


def _taken(length: int, share: float) -> int:
    """Images that an epoch takes of a set."""
    return max(1, round(length * share))


class RankSampler(Sampler[Key]):
    """(epoch, index) of every world-th item from this rank on; nothing is padded, so that no item
    counts twice. Set ``epoch`` where the preset depends on it.

    Args:
        length: of the data set.
    """

    def __init__(self, length: int) -> None:
        self.indices = range(rank(), length, world_size())
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Key]:
        return ((self.epoch, index) for index in self.indices)


class Loader(Generic[ItemsT]):
    """Batches of a data set; a UserError of a worker process arrives here as it was raised.

    Args:
        dataset: items, asked for by (epoch, index).
        workers: processes that load; 0 loads in this one.
        pin: page-locked memory, for the way to a GPU.
        collate: makes a batch of a list of items.
        tolerant: leave out items that raise a UserError, in place of raising it, and gather them
            in ``errors`` while batches are drawn.
        batches: ``batch_sampler``, or ``sampler`` and ``batch_size``, of torch's DataLoader.
    """

    def __init__(
        self,
        dataset: ItemsT,
        *,
        workers: int,
        pin: bool,
        collate: Collate,
        tolerant: bool = False,
        **batches: Any,
    ) -> None:
        self.dataset = dataset
        self.tolerant = tolerant
        self.errors: list[LoadError] = []
        self._batches = DataLoader(
            _Catching(dataset),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            collate_fn=partial(_collate, collate=collate),
            worker_init_fn=_ignore_signals,
            # Of its own: each new iterator draws from it, which would shift the global one.
            generator=torch.Generator(),
            **batches,
        )

    @property
    def sampler(self) -> Any:
        """Of the items; set its ``epoch``."""
        return self._batches.sampler

    @property
    def batch_sampler(self) -> Any:
        """Of the batches; set the ``epoch`` of an :class:`EpochSampler`."""
        return self._batches.batch_sampler

    @property
    def batch_size(self) -> int:
        """Items in a full batch."""
        return self.batch_sampler.batch_size

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return self._checked(iter(self._batches))  # workers start here, not at the first batch

    def _checked(self, batches: Iterator["_Batch"]) -> Iterator[Any]:
        for batch, errors in batches:
            self.report(errors)
            if batch is not None:
                yield batch

    def report(self, errors: Iterable[LoadError]) -> None:
        """Add items to ``errors``, or raise the first one's error where that is wanted."""
        for error in errors:
            if not self.tolerant:
                raise error.error
            self.errors.append(error)


class _Batch(NamedTuple):
    items: Any  # what the collate function made; None where no item could be loaded
    errors: list[LoadError]


class _Catching(Dataset[Any]):
    """The items of a data set, or LoadErrors in place of those that raise a UserError."""

    def __init__(self, dataset: Items) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Any:
        try:
            return self.dataset[key]
        except UserError as error:
            return LoadError(key[1], error)


def _collate(items: list[Any], collate: Collate) -> _Batch:
    errors = [item for item in items if isinstance(item, LoadError)]
    loaded = [item for item in items if not isinstance(item, LoadError)]
    return _Batch(collate(loaded) if loaded else None, errors)


def _ignore_signals(_: int) -> None:
    """In a worker: signals are for the main process, which finishes its step with this one's help.

    Ctrl-C and torchrun signal the whole process group, so the worker gets one of its own.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(AttributeError, OSError):  # not on Windows
        os.setpgid(0, 0)


def train_loader(
    dataset: ItemsT, sampler: EpochSampler, workers: int, pin: bool = False
) -> Loader[ItemsT]:
    """Make the loader of training.

    Args:
        dataset: items asked for by (epoch, index).
        sampler: of the batches.
        workers: processes that load; 0 loads in this one.
        pin: page-locked memory, for the way to a GPU.

    Returns:
        A loader of images N×3×S×S uint8, masks N×1×S×S uint8 and indices N int64.
    """
    return Loader(dataset, workers=workers, pin=pin, collate=default_collate, batch_sampler=sampler)


def eval_loader(
    dataset: ItemsT,
    batch_size: int,
    workers: int,
    pin: bool = False,
    collate: Collate | None = None,
    tolerant: bool = False,
) -> Loader[ItemsT]:
    """Make a loader of this rank's share of a data set, in order, each item once.

    Args:
        dataset: items asked for by (epoch, index).
        batch_size: items in a batch.
        workers, pin: as for :func:`train_loader`.
        collate: makes a batch of a list of items; :func:`collate_ragged` if None.
        tolerant: gather what cannot be loaded in ``errors``, in place of raising a UserError.

    Returns:
        A loader; without ``collate``, of images N×3×S×S uint8, a list of N masks 1×H×W, each of
        its own size, and a list of N indices.
    """
    return Loader(
        dataset,
        workers=workers,
        pin=pin,
        collate=collate or collate_ragged,
        tolerant=tolerant,
        batch_size=batch_size,
        sampler=RankSampler(len(dataset)),
    )


def collate_ragged(samples: list[Sample]) -> tuple[Tensor, list[Tensor], list[int]]:
    """Make a batch whose masks keep their sizes."""
    images, masks, indices = zip(*samples, strict=True)
    return torch.stack(images), list(masks), list(indices)
