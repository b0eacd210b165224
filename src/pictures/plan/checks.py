"""Checks that results can be written and overwrite nothing, even for millions of them.

Only files that already exist in the folders of results are checked one by one.
"""

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...files import check_outputs, find_overwritten
from ..search import stem_of
from .jobs import Job, Jobs, Names

_64_BITS = 2**64 - 1


def check_targets(
    jobs: Jobs,
    inputs: Sequence[str | Path],
    frames: str = "",
    done: Callable[[Job], bool] = lambda job: False,
) -> int:
    """Check, before anything is computed, that the results of jobs can be written.

    Args:
        jobs: all jobs of the run.
        inputs: files that the run reads in addition to the sources: weights, a background.
        frames: for videos, the suffix of single frames; ``target`` is then a folder.
        done: tells which jobs are skipped because their result exists.

    Returns:
        How many existing files the results replace.

    Raises:
        UserError: a result cannot be written, or would overwrite an input.
    """
    if frames:  # any file in the folder may be a frame
        folders = [job.target for job in jobs if not done(job)]
        targets = [folder / f"000001{frames}" for folder in folders]
        present = [path for path in folders if path.is_dir() for path in path.iterdir()]
        check_outputs({"output": targets + present}, inputs)
        return sum(path.stem.isdecimal() and path.suffix == frames for path in present)
    folder, tried = "", 0  # the longest name tried in this folder
    replaced = 0
    for files, there in _with_results(jobs):
        if files.target != folder:
            folder, tried = files.target, 0
        targets = [job.target for job in files.jobs() if job.target.name in there and not done(job)]
        replaced += sum(target.is_file() for target in targets)  # not FIFOs
        new = max((name for name in files.targets if name not in there), key=_length, default="")
        if _length(new) > tried:
            tried = _length(new)
            targets.append(Path(folder) / new)
        if targets:
            check_outputs({"output": targets}, inputs)
    return replaced


def _length(name: str) -> int:
    return len(os.fsencode(name))


def _with_results(jobs: Jobs) -> Iterator[tuple[Names, frozenset[str]]]:
    """Jobs by folder, with the names of all that the folder of their results already holds."""
    folder, there = None, frozenset[str]()
    for files in jobs.by_folder():
        if files.target != folder:
            folder = files.target
            try:
                there = frozenset(os.listdir(folder))
            except (OSError, ValueError):
                there = frozenset()
        yield files, there


def unique_names(names: Sequence[str], endings: Iterable[str]) -> list[str]:
    """Each name with its suffix replaced by an ending, or kept before it where two would be the
    same."""
    endings = list(endings)
    whole: set[str] = set()
    while True:
        results = [
            (name if name in whole else stem_of(name)) + ending
            for name, ending in zip(names, endings, strict=True)
        ]
        if len(set(results)) == len(results):
            return results
        counts = Counter(results)
        clashing = {name for name, r in zip(names, results, strict=True) if counts[r] > 1}
        if clashing <= whole:
            return results
        whole |= clashing


def check_unique(results: Sequence[str], sources: Callable[[], Iterable[object]]) -> None:
    """Check that no two results in one folder have the same name.

    Args:
        results: their names.
        sources: gives the files that they are made from, in the same order; called on an error.

    Raises:
        UserError: two have, as two sources have the same name.
    """
    if len(set(results)) < len(results):
        doubled = next(name for name, count in Counter(results).items() if count > 1)
        pairs = zip(results, sources(), strict=True)
        first, second, *_ = (source for result, source in pairs if result == doubled)
        advice = "predict their folders one by one, each into another output"
        raise UserError(f"{first} and {second} have the same name; {advice}")


def check_overwriting(
    jobs: Jobs,
    kind: str = "image",
    place: str = "folder",
    skippable: Callable[[Path], bool] = lambda source: False,
) -> Jobs:
    """Check that no job overwrites an input, and return the jobs.

    Args:
        jobs: of all inputs.
        kind: the kind of input, for messages.
        place: what the output is, for messages.
        skippable: tells whether ``skip_existing`` would skip a source as a result of an earlier
            run.

    Raises:
        UserError: one does.
    """
    if found := _find_overwritten(jobs):
        target, source = found
        text = f"{target} would overwrite {'an' if kind == 'image' else 'a'} {kind}"
        skip = "if it is an earlier result, {skip_existing} leaves it as it is"
        advice = skip if skippable(source) else None
        raise UserError(f"{text}; name another {place}", "output", advice=advice)
    return jobs


def _find_overwritten(jobs: Jobs) -> tuple[Path, Path] | None:
    """As :func:`~src.files.find_overwritten`; for a million files it holds only a number each."""
    written = np.unique(np.concatenate([np.zeros(0, np.uint64), *map(_inodes, _existing(jobs))]))
    if not len(written):
        return None
    sources: list[Path] = []
    for files in jobs.by_folder():
        paths = [os.path.join(files.source, name) for name in files.sources]
        alike = np.isin(_inodes(paths), written)
        sources += [Path(paths[n]) for n in np.flatnonzero(alike)]
    wanted = _inodes(map(str, sources))
    targets = (
        path
        for paths in _existing(jobs)
        for path, alike in zip(paths, np.isin(_inodes(paths), wanted), strict=True)
        if alike
    )
    return find_overwritten(targets, sources) if sources else None


def _existing(jobs: Jobs) -> Iterator[list[str]]:
    """The results that already exist."""
    for files, there in _with_results(jobs):
        found = [os.path.join(files.target, name) for name in files.targets if name in there]
        if found:
            yield found


def _inodes(paths: Iterable[str]) -> np.ndarray:
    """The inodes of the files that paths lead to; 0 if there is none."""
    numbers = array("Q")
    for path in paths:
        try:
            numbers.append(os.stat(path).st_ino & _64_BITS)
        except (OSError, ValueError):
            numbers.append(0)
    return np.frombuffer(numbers, np.uint64) if numbers else np.zeros(0, np.uint64)
