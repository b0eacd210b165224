"""Files to read and to write, possibly millions of them."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

PIPE = Path("-")  # standard input and output
_BLOCK = 10_000  # names that are unpacked at a time


@dataclass(frozen=True)
class Job:
    """An image or video, and where its result goes."""

    source: Path
    target: Path


class Names(NamedTuple):
    """Files in one folder, and their results, also in one folder."""

    source: str  # the folder
    target: str
    sources: Sequence[str]
    targets: Sequence[str]

    def jobs(self) -> Iterator[Job]:
        """The jobs, with full paths."""
        source, target = Path(self.source), Path(self.target)
        for name, result in zip(self.sources, self.targets, strict=True):
            yield Job(source / name, target / result)


class _Block(NamedTuple):
    source: str
    target: str
    number: int
    packed: bytes  # names of sources, then of targets


class Jobs:
    """Jobs in order, packed: a million take some 10 MB, where paths would take a GB.

    Args:
        jobs: any number of them.

    Example:
        >>> jobs = Jobs(Job(Path(f"in/{n}.jpg"), Path(f"out/{n}.png")) for n in range(5))
        >>> len(jobs), next(iter(jobs)).target.name, [job.source.stem for job in jobs.share(1, 2)]
        (5, '0.png', ['1', '3'])
    """

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._blocks: list[_Block] = []
        self._count = 0
        for _, group in groupby(jobs, lambda job: (job.source.parent, job.target.parent)):
            same = list(group)
            source, target = same[0].source.parent, same[0].target.parent
            results = [job.target.name for job in same]
            self.add(Names(str(source), str(target), [job.source.name for job in same], results))

    def add(self, files: Names) -> None:
        """Append the jobs of a folder."""
        for start in range(0, len(files.sources), _BLOCK):
            sources, targets = (
                names[start : start + _BLOCK] for names in (files.sources, files.targets)
            )
            self._blocks.append(
                _Block(files.source, files.target, len(sources), pack([*sources, *targets]))
            )
        self._count += len(files.sources)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Job]:
        for files in self.by_folder():
            yield from files.jobs()

    def by_folder(self) -> Iterator[Names]:
        """The names, in blocks of at most 10,000."""
        for source, target, number, packed in self._blocks:
            names = unpack(packed)
            yield Names(source, target, names[:number], names[number:])

    def folders(self) -> Iterator[tuple[str, str]]:
        """The folders of :meth:`by_folder`: of sources, and of targets."""
        return ((block.source, block.target) for block in self._blocks)

    def share(self, number: int, count: int) -> "Jobs":
        """Every ``count``-th job, from ``number`` (0 … count - 1) on."""
        if count == 1:
            return self
        found, passed = Jobs(), 0
        for source, target, sources, targets in self.by_folder():
            own = slice((number - passed) % count, None, count)
            found.add(Names(source, target, sources[own], targets[own]))
            passed += len(sources)
        return found

    def only(self, wanted: Callable[[str, str], bool]) -> "Jobs":
        """The jobs whose source, as folder and name, is wanted."""
        found = Jobs()
        for source, target, sources, targets in self.by_folder():
            kept = [n for n, name in enumerate(sources) if wanted(source, name)]
            names, results = [sources[n] for n in kept], [targets[n] for n in kept]
            found.add(Names(source, target, names, results))
        return found


def pack(names: Iterable[str]) -> bytes:
    """Pack names of files into a few bytes each; :func:`unpack` restores them."""
    return zlib.compress(os.fsencode("\0".join(names)), 1)


def unpack(packed: bytes) -> list[str]:
    """The names, at least one, that :func:`pack` has packed."""
    return os.fsdecode(zlib.decompress(packed)).split("\0")
