"""Batches: in reproducible random order to train, in order and each image once to evaluate."""

import os
import signal
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import accumulate, chain
from multiprocessing import get_start_method, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, Generic, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from src.errors import UserError

from ..distributed import rank, world_size
from .dataset import Sample

Key = tuple[int, ...]
"""Epoch and index of an item; in training, also the number of its batch in the epoch, and how often
the epoch has used it before."""
_TRIED = 50  # replacements of an item from each set; that many faulty ones exceed every limit
Collate = Callable[[list[Any]], Any]
"""Makes a batch from a list of items."""


class Items(Protocol):
    """A data set of known length whose items are indexed by their keys."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Key) -> Any: ...


ItemsT = TypeVar("ItemsT", bound=Items)


class EpochSampler(Sampler[list[Key]]):
    """Shuffled batches of (epoch, index, number of the batch, use), this rank's share.

    The order depends only on (seed, epoch). Set ``epoch``, and ``start`` to continue in the middle
    of one. All batches are full: the images that don't fill the last one are dropped from the epoch
    (different ones in each), and if there are fewer images than a batch needs, they repeat: ``use``
    counts from 0 how often the epoch has used an image before.

    Args:
        lengths: of the concatenated data sets, in images.
        batch_size: images per batch and rank.
        seed: of the order.
        shares: how often an epoch uses each image of each set: 2 is twice, 0.5 every other one,
            chosen again in each epoch, 0 none. 1 for each if None.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        shares: Sequence[float] | None = None,
    ) -> None:
        shares = shares or [1.0] * len(lengths)
        self.lengths = lengths
        pairs = zip(lengths, shares, strict=True)
        self.taken = [max(1, round(n * share)) if share else 0 for n, share in pairs]
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.start = 0

    def __len__(self) -> int:
        return max(1, sum(self.taken) // (self.batch_size * world_size()))

    def __iter__(self) -> Iterator[list[Key]]:
        order = self._order()
        wanted = len(self) * self.batch_size * world_size()
        order = order.repeat(-(-wanted // len(order)))[:wanted]
        taken = torch.stack((order, _times_before(order)), dim=1)
        shape = -1, world_size(), self.batch_size, 2
        batches = taken.view(shape)[self.start :, rank()].tolist()
        for number, batch in enumerate(batches, self.start):
            yield [(self.epoch, index, number, use) for index, use in batch]

    def replacements(self, epoch: int, index: int, use: int) -> Iterator[int]:
        """Replacements of an image that cannot be read, in random order: from its own set, then
        from the others that the epoch uses.
        """
        key = self.seed, epoch, index, *([use] if use else [])
        generator = torch.Generator().manual_seed(hash(key) & 2**63 - 1)
        firsts = [0, *accumulate(self.lengths)]
        own = bisect_right(firsts, index) - 1
        sets = [n for n, taken in enumerate(self.taken) if taken and n != own]
        for n in (own, *sets):
            others = torch.randperm(self.lengths[n], generator=generator)[:_TRIED]
            yield from (firsts[n] + others).tolist()

    def _order(self) -> Tensor:
        """The indices of all images that the epoch uses, shuffled."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        parts, first = [], 0
        for length, taken in zip(self.lengths, self.taken, strict=True):
            rounds = [torch.randperm(length, generator=generator) for _ in range(0, taken, length)]
            if rounds:
                parts.append(first + torch.cat(rounds)[:taken])
            first += length
        order = torch.cat(parts)
        if len(parts) > 1:
            order = order[torch.randperm(len(order), generator=generator)]
        return order


def _times_before(order: Tensor) -> Tensor:
    """How often each value has occurred before.

    Example:
        >>> _times_before(torch.tensor([3, 5, 3, 3, 5]))
        tensor([0, 0, 1, 2, 1])
    """
    ranked, places = order.sort(stable=True)
    first = torch.searchsorted(ranked, ranked)  # where the equal ones begin
    return torch.empty_like(order).scatter_(0, places, torch.arange(len(order)) - first)


class OrderedSampler(Sampler[list[Key]]):
    """Batches of (epoch, index) of some items, in order. Set ``epoch`` if the preset depends on it.

    Args:
        indices: of the items.
        batch_size: items in a batch; the last one may have fewer.
    """

    def __init__(self, indices: Sequence[int], batch_size: int) -> None:
        self.indices = indices
        self.batch_size = batch_size
        self.epoch = 0

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for first in range(0, len(self.indices), self.batch_size):
            batch = self.indices[first : first + self.batch_size]
            yield [(self.epoch, index) for index in batch]


class Loader(Generic[ItemsT]):
    """Batches of a data set; a UserError of a worker process is raised here unchanged.

    Args:
        dataset: items, indexed by the sampler's keys.
        sampler: of the batches; set its ``epoch``.
        workers: processes that load; 0 loads in this one.
        pin: page-locked memory, for copies to a GPU.
        collate: makes a batch from a list of items.
        tolerant: skip items that raise a UserError instead of raising it, and collect the errors by
            index in ``errors`` as batches are drawn. An :class:`EpochSampler`'s items are replaced
            by others, which depend only on seed, epoch and index; those of an
            :class:`OrderedSampler` are left out.
    """

    def __init__(
        self,
        dataset: ItemsT,
        sampler: EpochSampler | OrderedSampler,
        *,
        workers: int,
        pin: bool = False,
        collate: Collate,
        tolerant: bool = False,
    ) -> None:
        self.dataset = dataset
        self.sampler: Any = sampler
        self.batch_size = sampler.batch_size
        self.tolerant = tolerant
        self.errors: dict[int, UserError] = {}
        replace = sampler if tolerant and isinstance(sampler, EpochSampler) else None
        self._batches = DataLoader(
            _Batches(dataset, collate, replace),
            batch_size=None,  # the sampler yields the keys of a whole batch
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin,
            worker_init_fn=partial(_prepare_worker, Image.MAX_IMAGE_PIXELS, [*warnings.filters]),
            # Its own: each new iterator draws from it, which would advance the global one.
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        with _sigterm_blocked(self._batches.num_workers):
            return self._checked(iter(self._batches))  # workers start here, not at the first batch

    def _checked(self, batches: Iterator[tuple[Any, dict[int, UserError]]]) -> Iterator[Any]:
        try:
            for batch, errors in batches:
                self.report(errors)
                if batch is not None:
                    yield batch
        except (ConnectionError, EOFError) as error:
            # Killed while handing over a batch, which torch does not report in its usual way.
            raise RuntimeError(f"DataLoader worker died ({type(error).__name__})") from error

    def report(self, errors: dict[int, UserError]) -> None:
        """Add errors to ``errors``, or raise the first one unless ``tolerant``."""
        if errors and not self.tolerant:
            raise next(iter(errors.values()))
        self.errors |= errors


class _Batches(Dataset[Any]):
    """Batches by their keys, or None if no item can be loaded, and the errors by index.

    ``sampler``: chooses replacements of items that cannot be loaded; None leaves these out.
    """

    def __init__(self, dataset: Items, collate: Collate, sampler: EpochSampler | None) -> None:
        self.dataset = dataset
        self.collate = collate
        self.sampler = sampler

    def __getitem__(self, keys: list[Key]) -> tuple[Any, dict[int, UserError]]:
        items: list[Any] = []
        errors: dict[int, UserError] = {}
        for epoch, index, *more in keys:
            use = more[1] if len(more) > 1 else 0
            instead = self.sampler.replacements(epoch, index, use) if self.sampler else ()
            for other in chain([index], instead):
                try:
                    items.append(self.dataset[epoch, other, *more])
                    break
                except UserError as error:
                    errors[other] = error
        return self.collate(items) if items else None, errors


@contextmanager
def _sigterm_blocked(workers: int) -> Iterator[None]:
    """Block SIGTERM while workers start, so that all their threads, and a fork server, inherit it:
    workers that are not forked have threads before :func:`_prepare_worker` is called.
    """
    if not workers or not hasattr(signal, "sigwaitinfo"):
        yield
        return
    if get_start_method() != "fork":
        resource_tracker.ensure_running()  # now, as its start would unblock SIGTERM
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_worker(largest: float | None, filters: Sequence[Any], _: int) -> None:
    """Set what a worker that is not forked lacks, and leave signals to the main process, which
    still needs this worker to finish its step.

    Ctrl-C and torchrun signal the whole process group, so the worker gets one of its own. SLURM and
    systemd send SIGTERM to each process, so the worker heeds it only from the main one.

    ``largest`` and ``filters``: Pillow's limit, and those of warnings, in the main process.
    """
    Image.MAX_IMAGE_PIXELS = largest  # type: ignore[assignment]
    warnings.filters[:] = filters  # type: ignore[index]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(AttributeError, OSError):  # not on Windows
        os.setpgid(0, 0)
    if hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        main = parent_process()  # with a fork server, not the one that forked this worker
        assert main is not None and main.pid is not None
        Thread(target=_await_signal, args=(main.pid,), daemon=True).start()
        Thread(target=_await_end, args=(main,), daemon=True).start()


def _await_end(main: BaseProcess) -> None:
    """End this worker when the main process is gone. torch waits for the end of the process that
    forked this one, and a fork server waits for the end of its workers.
    """
    main.join()
    os._exit(1)


def _await_signal(main: int) -> None:
    """End this worker when the process ``main`` sends SIGTERM."""
    while (received := signal.sigwaitinfo({signal.SIGTERM})) and received.si_pid != main:
        pass
    os._exit(0)  # at once, as torch's own handler


def train_loader(
    dataset: ItemsT,
    sampler: EpochSampler,
    workers: int,
    pin: bool = False,
    tolerant: bool = False,
) -> Loader[ItemsT]:
    """Make the training loader.

    Args:
        dataset, sampler, workers, pin, tolerant: as for :class:`Loader`.

    Returns:
        A loader of images N×3×S×S uint8, masks N×1×S×S uint8 and indices N int64; S may differ
        between batches.
    """
    return Loader(
        dataset, sampler, workers=workers, pin=pin, collate=default_collate, tolerant=tolerant
    )


def eval_loader(
    dataset: ItemsT, batch_size: int, workers: int, pin: bool = False, tolerant: bool = False
) -> Loader[ItemsT]:
    """Make a loader of this rank's share of a data set, in order.

    Nothing is padded, so that no item counts twice.

    Args:
        dataset, workers, pin, tolerant: as for :class:`Loader`.
        batch_size: items in a batch.

    Returns:
        A loader of images N×3×S×S uint8, a list of N masks 1×H×W, each of its own size, and a
        list of N indices.
    """
    share = range(rank(), len(dataset), world_size())
    sampler = OrderedSampler(share, batch_size)
    return Loader(
        dataset, sampler, workers=workers, pin=pin, collate=collate_ragged, tolerant=tolerant
    )


def collate_ragged(samples: list[Sample]) -> tuple[Tensor, list[Tensor], list[int]]:
    """Make a batch whose masks keep their sizes."""
    images, masks, indices = zip(*samples, strict=True)
    return torch.stack(images), list(masks), list(indices)
