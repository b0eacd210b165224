"""Many images through one network: reading, computing and writing at the same time."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import partial
from threading import Event, Lock
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..device import per_core, return_freed_memory
from ..errors import UserError
from .predictor import Predictor

T = TypeVar("T")
R = TypeVar("R")
Loaded = tuple[Image.Image, Tensor]  # an image, and the network's input made from it
_MAX_PIXELS = 48_000_000  # of all images in memory; a larger image goes through alone
_GPU_BATCH = 8  # images
_PATIENCE = 5.0  # seconds that a batch waits for more images


def stream(
    predictor: Predictor,
    items: Iterable[T],
    load: Callable[[T], Image.Image],
    finish: Callable[[T, Image.Image, np.ndarray], R],
    pixels: Callable[[T], int] = lambda item: 0,
    total: int | None = None,
) -> Iterator[tuple[T, R | UserError]]:
    """Predict every item as soon as possible, and yield it with the result of ``finish``.

    On a CPU each core computes its own image, so that none waits for the others; on a GPU all
    batches have the same size. The number of images in memory is bounded, and so are their pixels.

    Args:
        predictor: shared by all threads.
        items: taken one by one, as room becomes free.
        load: returns an item's upright image; called in a worker thread.
        finish: gets item, image and map (H×W float32 in [0, 1]; C×H×W for several classes); called
            in a worker thread.
        pixels: returns the number of pixels of an item, for example from its header.
        total: the number of items; if it is less than the number of cores, each item gets several.

    Yields:
        Item and result, in the order in which they finish. A bad image does not stop the run: if
        ``load``, ``pixels``, ``finish`` or the network raises, the result is a UserError.

    Raises:
        OSError: the disk is full.
        Exception: the network failed for a reason that is not the image's fault.

    Example:
        >>> def load(path): return Image.open(path)
        >>> def finish(path, image, saliency): return float(saliency.mean())
        >>> for path, mean in stream(predictor, paths, load, finish):  # doctest: +SKIP
        ...     print(path, mean)
    """
    on_cpu = predictor.device.type == "cpu"
    cores = torch.get_num_threads()
    files = ThreadPoolExecutor(max(2, cores), initializer=torch.set_num_threads, initargs=(1,))
    inside: dict[Future[list[tuple[T, R | UserError]]], _Batch[T]] = {}
    batch_size = 1 if on_cpu or predictor.size.auto else _GPU_BATCH
    batch: _Batch[T] = _Batch(0)
    with (
        files,
        per_core((total or cores) if on_cpu else 1) as (networks, width),
        ThreadPoolExecutor(limit := 2 * width + 1) as batches,
    ):
        steps = _Steps(predictor, load, finish, files, networks, batch_size)
        try:
            for item in items:
                size = _attempt(pixels, item)
                if isinstance(size, UserError):
                    yield item, size
                    continue
                while inside and sum(b.pixels for b in inside.values()) + size > _MAX_PIXELS:
                    batch.close()
                    yield from _collect(inside)
                if batch.add(item, size):
                    continue
                while len(inside) >= limit:
                    yield from _collect(inside)
                batch = _Batch(batch_size)
                batch.add(item, size)
                inside[batches.submit(steps.run, batch)] = batch
            batch.close()
            while inside:
                yield from _collect(inside)
        finally:
            batch.close()
            files.shutdown(wait=False, cancel_futures=True)


class _Batch(Generic[T]):
    """Items that go through the network together."""

    def __init__(self, limit: int) -> None:
        self.items: list[T] = []
        self.pixels = 0
        self._limit = limit
        self._lock = Lock()
        self._closed = Event()

    def add(self, item: T, pixels: int) -> bool:
        """Add an item if the batch still has room for it; returns whether it had."""
        with self._lock:
            # Large images go in smaller batches: some load and finish while others compute.
            full = len(self.items) >= self._limit or self.pixels > _MAX_PIXELS // 4
            if full or self._closed.is_set():
                return False
            self.items.append(item)
            self.pixels += pixels
        if len(self.items) == self._limit:
            self.close()
        return True

    def close(self) -> None:
        """Accept no more items."""
        with self._lock:
            self._closed.set()

    def take(self) -> list[T]:
        """The items, once the batch is full or closed, or no more come for a while."""
        self._closed.wait(_PATIENCE)
        self.close()
        return self.items


def _collect(inside: dict[Future[list[R]], _Batch[T]]) -> Iterator[R]:
    """Wait for a batch, and yield the results of all that are done."""
    for future in wait(inside, return_when=FIRST_COMPLETED).done:
        del inside[future]
        yield from future.result()


@dataclass
class _Steps(Generic[T, R]):
    """The steps that a batch's items go through, in a thread of its own."""

    predictor: Predictor
    load: Callable[[T], Image.Image]
    finish: Callable[[T, Image.Image, np.ndarray], R]
    files: Executor  # loads and finishes
    networks: Executor
    batch_size: int

    def run(self, batch: _Batch[T]) -> list[tuple[T, R | UserError]]:
        """Each item's result; an exception from here ends the run."""
        items = batch.take()
        loaded = list(self.files.map(partial(_attempt, self._load), items))
        maps = self.networks.submit(self._predict, loaded).result()
        results = self.files.map(partial(_attempt, self._finish), items, loaded, maps)
        return list(zip(items, results, strict=True))

    def _load(self, item: T) -> Loaded:
        image = self.load(item)
        return image, self.predictor.prepare(image)

    def _predict(self, loaded: list[Loaded | UserError]) -> list[Tensor | UserError]:
        prepared = [entry[1] for entry in loaded if not isinstance(entry, UserError)]
        maps = iter(self._compute(prepared) if prepared else ())
        return [entry if isinstance(entry, UserError) else next(maps) for entry in loaded]

    def _compute(self, images: list[Tensor]) -> list[Tensor | UserError]:
        """The maps of prepared images, padded to a full batch; if that fails, of one image at a
        time."""
        filled = torch.stack(images + images[-1:] * (self.batch_size - len(images)))
        try:
            return list(self.predictor.maps(filled)[: len(images)].cpu())
        except UserError as error:
            if len(images) == 1:
                return [error]
            return [self._compute([image])[0] for image in images]

    def _finish(self, item: T, loaded: Loaded | UserError, saliency: Tensor | UserError) -> R:
        if isinstance(loaded, UserError):
            raise loaded
        if isinstance(saliency, UserError):
            raise saliency
        image, _ = loaded
        if image.width * image.height > _MAX_PIXELS // 4:  # room for the large copies to come
            return_freed_memory()
        # The map has no name here, so that ``finish`` can free it: 400 MB for 100 megapixels.
        return self.finish(item, image, self._resize(image, saliency))

    def _resize(self, image: Image.Image, saliency: Tensor) -> np.ndarray:
        resized = self.predictor.resize(saliency, (image.height, image.width))
        return self.predictor.look_closer(image, resized).numpy()


def _attempt(step: Callable[..., R], *args: Any) -> R | UserError:
    """A step's result, or the item's error; raises errors that would hit all other items too."""
    try:
        return step(*args)
    except UserError as error:
        return error
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise
        problem = error.strerror or error
        return UserError(f"{error.filename}: {problem}" if error.filename else str(problem))
    except Exception as error:
        return UserError(f"cannot be predicted ({type(error).__name__}: {error})")
