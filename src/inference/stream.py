"""Many images through one network: reading, computing and writing at the same time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from threading import Event, Lock, Semaphore
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..device import per_core
from ..errors import UserError
from .predictor import Predictor

T = TypeVar("T")
R = TypeVar("R")
Maps = list[Tensor | UserError]  # of one batch: H×W each, or what is wrong with it
_MAX_PIXELS = 48_000_000  # of all images in memory; a larger image goes through alone
_GPU_BATCH = 8  # images
_PATIENCE = 5.0  # seconds until a batch takes no more images, though it is not full


def stream(
    predictor: Predictor,
    items: Iterable[T],
    load: Callable[[T], Image.Image],
    finish: Callable[[T, Image.Image, np.ndarray], R],
    pixels: Callable[[T], int] = lambda item: 0,
    total: int | None = None,
) -> Iterator[tuple[T, R | UserError]]:
    """Predict every item as soon as possible, and yield it with what ``finish`` made of it.

    On a CPU each core computes an image of its own, so that none waits for the others; on a GPU all
    batches are of one size. The number of images in memory is bounded, and so are their pixels.

    Args:
        predictor: shared by all threads.
        items: taken one by one, as there is room.
        load: an item's upright image; called in a thread.
        finish: gets item, image and map (H×W float32 in [0, 1]; C×H×W of a network of classes);
            called in a thread.
        pixels: how many pixels an item will have, for example from its header.
        total: how many items there are; if they are fewer than the cores, each gets several.

    Yields:
        Item and result, in the order in which they are done. One bad image ends no run: where
        ``load``, ``pixels``, ``finish`` or the network raised, the result is a UserError.

    Raises:
        OSError: the disk is full.
        Exception: the network failed in a way that is no image's fault.

    Example:
        >>> def load(path): return Image.open(path)
        >>> def finish(path, image, saliency): return float(saliency.mean())
        >>> for path, mean in stream(predictor, paths, load, finish):  # doctest: +SKIP
        ...     print(path, mean)
    """
    on_cpu = predictor.device.type == "cpu"
    cores = torch.get_num_threads()
    inside: dict[Future[R | UserError], _Admission[T]] = {}
    batch_size = 1 if on_cpu else _GPU_BATCH
    with (
        per_core((total or cores) if on_cpu else 1) as (networks, width),
        ThreadPoolExecutor(
            limit := 2 * width * batch_size + 2, initializer=torch.set_num_threads, initargs=(1,)
        ) as threads,
    ):
        stages = _Stages(predictor, load, finish, batch_size, Semaphore(max(2, cores)), Event())
        batch = _Batch(networks, stages.compute)
        try:
            for item in items:
                try:
                    size = pixels(item)
                except UserError as error:
                    yield item, error
                    continue
                while inside and not _has_room(inside, size, limit):
                    yield from _collect(inside, batch)
                if not batch.expect():
                    batch = _Batch(networks, stages.compute)
                    batch.expect()
                inside[threads.submit(stages.run, item, batch)] = _Admission(item, size, batch)
                if batch.expected == batch_size:
                    batch.close()
            batch.close()
            while inside:
                yield from _collect(inside, batch)
        finally:
            stages.stopped.set()
            batch.close()


@dataclass
class _Admission(Generic[T]):
    """An item that has been let in and whose result has not been handed out."""

    item: T
    pixels: int
    batch: "_Batch"


def _has_room(inside: dict[Future[R], _Admission[T]], pixels: int, limit: int) -> bool:
    used = sum(admission.pixels for admission in inside.values())
    return len(inside) < limit and used + pixels <= _MAX_PIXELS


def _collect(inside: dict[Future[R], _Admission[T]], batch: "_Batch") -> Iterator[tuple[T, R]]:
    """Wait for at least one item, and yield all that are done."""
    if all(admission.batch is batch for admission in inside.values()):
        batch.close()  # nothing else is under way that could make room for one more
    for future in wait(inside, return_when=FIRST_COMPLETED).done:
        yield inside.pop(future).item, future.result()


class _Batch:
    """Images that go through the network together, as soon as the last of them is loaded."""

    def __init__(self, pool: ThreadPoolExecutor, compute: Callable[[list[Tensor]], Maps]) -> None:
        self.expected = 0
        self._pool, self._compute = pool, compute
        self._lock = Lock()
        self._open = True
        self._images: list[Tensor] = []
        self._failed = 0  # items that were expected, but have no image
        self._maps: Future[Maps] = Future()
        self._begun = Event()

    def expect(self) -> bool:
        """One image more will come; False where the batch is closed."""
        with self._lock:
            self.expected += self._open
            return self._open

    def close(self) -> None:
        """No more images will come."""
        with self._lock:
            self._open = False
            self._begin_if_complete()

    def fail(self) -> None:
        """An image that was expected does not come."""
        with self._lock:
            self._failed += 1
            self._begin_if_complete()

    def predict(self, image: Tensor) -> Tensor | UserError:
        """The map of an expected image; waits for the others of the batch."""
        with self._lock:
            place = len(self._images)
            self._images.append(image)
            self._begin_if_complete()
        # Items may come slowly, or no more at all: this must not wait for ever.
        if not self._begun.wait(_PATIENCE):
            self.close()
            self._begun.wait()
        return self._maps.result()[place]

    def _begin_if_complete(self) -> None:
        if self._open or len(self._images) + self._failed < self.expected or self._begun.is_set():
            return
        try:
            if self._images:
                self._maps = self._pool.submit(self._compute, self._images)
        except RuntimeError as error:  # the interpreter is ending
            self._maps.set_exception(error)
        self._begun.set()


@dataclass
class _Stages(Generic[T, R]):
    """What happens to each item."""

    predictor: Predictor
    load: Callable[[T], Image.Image]
    finish: Callable[[T, Image.Image, np.ndarray], R]
    batch_size: int
    cores: Semaphore  # how many threads may load and finish at once
    stopped: Event  # nobody wants the results any more

    def run(self, item: T, batch: _Batch) -> R | UserError:
        """Load, predict, finish, in a thread of the item's own; what this raises ends the run."""
        try:
            with self.cores:
                if self.stopped.is_set():
                    raise UserError("stopped")
                image = self.load(item)
                prepared = self.predictor.prepare(image)
        except BaseException as error:
            batch.fail()
            return _blame_item(error)
        saliency = batch.predict(prepared)
        if isinstance(saliency, UserError):
            return saliency
        try:
            with self.cores:
                if self.stopped.is_set():
                    raise UserError("stopped")
                resized = self.predictor.resize(saliency, (image.height, image.width))
                return self.finish(item, image, resized.numpy())
        except Exception as error:
            return _blame_item(error)

    def compute(self, images: list[Tensor]) -> Maps:
        """The maps of prepared images, filled up to a full batch; where that fails, one by one."""
        if self.stopped.is_set():
            return [UserError("stopped")] * len(images)
        filled = torch.stack(images + images[-1:] * (self.batch_size - len(images)))
        try:
            return list(self.predictor.maps(filled)[: len(images)].cpu())
        except UserError as error:
            if len(images) == 1:
                return [error]
            return [self.compute([image])[0] for image in images]


def _blame_item(error: BaseException) -> UserError:
    """What is wrong with one item; raises what would meet all others too."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno not in (ENOSPC, EDQUOT):
        return UserError(f"{error.filename or 'output'}: {error.strerror or error}")
    if isinstance(error, OSError) or not isinstance(error, Exception):
        raise error
    return UserError(f"cannot be predicted ({type(error).__name__}: {error})")
