"""Many pictures through one network: reading, computing and writing at the same time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from errno import EDQUOT, ENOSPC
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
_PIXELS = 48_000_000  # of the pictures in memory at once; a larger one goes through alone


def stream(
    predictor: Predictor,
    items: Iterable[T],
    load: Callable[[T], Image.Image],
    finish: Callable[[T, Image.Image, np.ndarray], R],
    pixels: Callable[[T], int] = lambda item: 0,
    total: int | None = None,
) -> Iterator[tuple[T, R | UserError]]:
    """Predict every item, as soon as it can be, and give it back with what ``finish`` made of it.

    On a CPU each of its cores computes a picture of its own, so that none waits for the others; on
    a GPU all batches are of one size. How many pictures are in memory is bounded, and so are their
    pixels.

    Args:
        predictor: shared by all threads.
        items: taken one by one, as there is room.
        load: an item's upright picture; called in a thread.
        finish: what to do with item, picture and map (H×W float32 in [0, 1]); called in a thread.
        pixels: how many an item will take, from its header, say.
        total: how many items there are; few of them get more cores each.

    Yields:
        Item and result, or item and a UserError where ``load``, ``pixels`` or ``finish`` raised, in
        the order in which they are done: one bad picture ends no run.
    """
    waiting, cores = iter(items), torch.get_num_threads()
    on_cpu = predictor.device.type == "cpu"
    files = ThreadPoolExecutor(max(2, cores), initializer=torch.set_num_threads, initargs=(1,))
    with files, per_core((total or cores) if on_cpu else 1) as (networks, width):
        flow = _Flow(predictor, load, finish, files, networks, width, 1 if on_cpu else 8)
        try:
            more = True
            while more or flow.inside:
                while more and flow.has_room():
                    more = (item := next(waiting, flow)) is not flow
                    try:
                        if more:
                            flow.admit(item, pixels(item))
                    except UserError as error:
                        yield item, error
                yield from flow.advance(last=not more)
        finally:
            for future in flow.steps:
                future.cancel()


@dataclass(eq=False)
class _Passage(Generic[T]):
    """An item on its way."""

    item: T
    pixels: int
    picture: Image.Image | None = None
    prepared: Tensor | None = None


@dataclass
class _Flow(Generic[T, R]):
    """The pictures in memory, and the steps that are being done on them."""

    predictor: Predictor
    load: Callable[[T], Image.Image]
    finish: Callable[[T, Image.Image, np.ndarray], R]
    files: ThreadPoolExecutor  # reads and writes
    networks: ThreadPoolExecutor
    width: int  # of networks
    batch: int
    ready: deque[_Passage] = field(default_factory=deque)  # for the network
    steps: dict[Future, tuple[Callable, list[_Passage]]] = field(default_factory=dict)
    inside: set[_Passage] = field(default_factory=set)

    def has_room(self) -> bool:
        used = sum(passage.pixels for passage in self.inside)
        limit = 2 * self.width * self.batch + 2
        return not self.inside or (len(self.inside) < limit and used < _PIXELS)

    def admit(self, item: T, pixels: int) -> None:
        passage = _Passage(item, pixels)
        self.inside.add(passage)
        self.steps[self.files.submit(self._read, passage)] = (self._was_read, [passage])

    def advance(self, last: bool) -> Iterator[tuple[T, R | UserError]]:
        """Wait for a step, and go on from it; a batch that cannot be filled is begun as it is."""
        reading = any(after == self._was_read for after, _ in self.steps.values())
        while len(self.ready) >= self.batch or (
            # The last ones, or, where nothing is under way, nothing will make room for more.
            self.ready and not reading and (last or not self.steps)
        ):
            batch = [self.ready.popleft() for _ in range(min(self.batch, len(self.ready)))]
            self.steps[self.networks.submit(self._compute, batch)] = (self._was_computed, batch)
        for future in wait(self.steps, return_when=FIRST_COMPLETED).done:
            after, passages = self.steps.pop(future)
            try:
                result = future.result()
            except UserError as error:
                result = error
            except OSError as error:
                if error.errno in (ENOSPC, EDQUOT):  # of the output; the others would fail too
                    raise
                result = UserError(f"{error.filename or 'output'}: {error.strerror or error}")
            except Exception as error:
                if after == self._was_computed:  # no fault of a picture
                    raise
                result = UserError(f"cannot be predicted ({type(error).__name__}: {error})")
            if done := after(passages, result):
                yield done

    def _read(self, passage: _Passage) -> None:
        passage.picture = self.load(passage.item)
        passage.prepared = self.predictor.prepare(passage.picture)

    def _was_read(self, passages: list[_Passage], failed: UserError | None) -> tuple | None:
        if failed:
            return self._leave(passages, failed)
        self.ready += passages
        return None

    def _compute(self, batch: list[_Passage]) -> list[Tensor]:
        prepared = [passage.prepared for passage in batch]
        full = torch.stack(prepared + prepared[-1:] * (self.batch - len(batch)))
        return list(self.predictor.maps(full)[: len(batch)].cpu())

    def _was_computed(self, passages: list[_Passage], maps: list[Tensor]) -> None:
        for passage, saliency in zip(passages, maps, strict=True):
            future = self.files.submit(self._write, passage, saliency)
            self.steps[future] = (self._leave, [passage])

    def _write(self, passage: _Passage, saliency: Tensor) -> R:
        size = (passage.picture.height, passage.picture.width)
        resized = self.predictor.resize(saliency, size).numpy()
        return self.finish(passage.item, passage.picture, resized)

    def _leave(self, passages: list[_Passage], result: R | UserError) -> tuple[T, R | UserError]:
        (passage,) = passages
        self.inside.remove(passage)
        return passage.item, result
