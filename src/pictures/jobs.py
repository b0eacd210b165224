"""Which pictures are meant, and the file to write for each."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .images import SUFFIXES, list_images
from .render import FORMATS

FILMS = frozenset((".m4v", ".mkv", ".mov", ".mp4", ".webm"))  # that are written
VIDEOS = FILMS | {".avi"}  # that are read; AVI cannot keep the times of frames


@dataclass(frozen=True)
class Job:
    """A picture and where its result goes."""

    source: Path
    target: Path


def plan(
    inputs: Sequence[Path],
    output: Path,
    suffix: str = "",
    form: str = ".png",
    tree: bool = False,
    again: bool = False,
) -> list[Job]:
    """A job for each picture, in order, each once.

    Args:
        inputs: pictures, folders of them, or patterns (``*``, ``?``, ``**``).
        output: a folder, or for a single picture a file in one of :data:`~.results.FORMATS`.
        suffix: put behind each name, before the format's.
        form: the format's suffix, where ``output`` is a folder.
        tree: read folders with all below them, and make the same folders in ``output``.
        again: pictures among the inputs that have a result's name are results of an earlier run,
            and no inputs.

    Raises:
        UserError: an input is missing, holds no picture, or a result would overwrite a picture or
            another result.
    """
    found: dict[Path, Path] = {}  # and its place below the output
    known: set[Path] = set()
    for path in inputs:
        for one, place in _inside(path, output, tree).items():
            spelt = one.parent.resolve() / one.name  # a link to a file is a picture of its own
            if spelt not in known:
                known.add(spelt)
                found[one] = place
    if output.suffix.lower() in FORMATS and not output.is_dir():
        if len(found) > 1:
            raise UserError(
                f"--output {output} is one file for {len(found)} pictures; name a folder"
            )
        return _safe([Job(path, output) for path in found], set())
    if output.is_file() or output.suffix.lower() in SUFFIXES:
        raise UserError(f"--output {output}: name a folder, or a {_formats()} file for one picture")
    results = _results(list(found.values()))
    jobs = [
        Job(path, output / f"{result}{suffix}{form}")
        for path, result in zip(found, results, strict=True)
    ]
    named = {path for path in inputs if path.is_file()}
    if not suffix and any(path.is_dir() and path.resolve() == output.resolve() for path in inputs):
        raise UserError(
            f"--output {output}: is the pictures' own folder; give --suffix _mask too, or another"
        )
    return _safe(jobs, set(found) - named if suffix and again else set())


def plan_films(inputs: Sequence[Path], output: Path, suffix: str, frames: bool) -> list[Job]:
    """A job for each film: to a film, or with ``frames`` to a folder.

    Raises:
        UserError: one is missing, or a result would overwrite a film or another result.
    """
    for path in inputs:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    if output.suffix.lower() in FILMS and not frames:
        if len(inputs) > 1:
            raise UserError(f"--output {output} is one file for {len(inputs)} films; name a folder")
        return _safe([Job(inputs[0], output)], set())
    if output.is_file() or output.suffix.lower() in VIDEOS | SUFFIXES:
        or_film = "" if frames else f", or a film ({', '.join(sorted(FILMS))})"
        raise UserError(f"--output {output}: name a folder{or_film}")
    jobs = []
    for path in dict.fromkeys(inputs):
        form = "" if frames else path.suffix if path.suffix.lower() in FILMS else ".mp4"
        jobs.append(Job(path, output / f"{path.stem}{suffix}{form}"))
    return _safe(jobs, set())


def _results(places: Sequence[Path]) -> list[Path]:
    """Each picture's place without its suffix, which stays where two would clash."""
    whole: set[Path] = set()
    while True:
        results = [place if place in whole else place.with_suffix("") for place in places]
        taken = Counter(results)
        clashing = {p for p, result in zip(places, results, strict=True) if taken[result] > 1}
        if clashing <= whole:
            return results
        whole |= clashing


def _inside(path: Path, output: Path, tree: bool) -> dict[Path, Path]:
    """The pictures of one input, and the place of each below the output."""
    if path.is_dir():
        inside = _walk(path, output.resolve()) if tree else list_images(path)
        if not inside:
            deeper = "" if tree else "; --recursive looks into its folders"
            raise UserError(f"{path}: holds no pictures ({', '.join(sorted(SUFFIXES))}){deeper}")
        return {one: one.relative_to(path) for one in inside}
    if path.exists():
        return {path: Path(path.name)}
    if not glob.has_magic(str(path)):
        raise UserError(f"{path}: no such file or folder")
    # Where the pattern leads through folders, they are kept below its last sure one.
    parts = path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
    above = Path(*parts)
    matches = (Path(match) for match in sorted(glob.glob(str(path), recursive=True)))
    matches = {one: one.relative_to(above) for one in matches if one.suffix.lower() in SUFFIXES}
    if not matches:
        raise UserError(f"{path}: matches no picture")
    return matches


def _walk(folder: Path, output: Path) -> list[Path]:
    """All pictures below a folder, but for former results and what hides behind a dot."""
    found = list_images(folder)
    for inner in sorted(folder.iterdir()):
        # A link to a folder may lead round in a circle.
        hidden = inner.name.startswith(".") or inner.is_symlink()
        if inner.is_dir() and not hidden and inner.resolve() != output:
            found += _walk(inner, output)
    return found


def _safe(jobs: list[Job], results: set[Path]) -> list[Job]:
    """The jobs, if none overwrites a picture or another's result; ``results``: which pictures may
    be left out, being results of an earlier run."""
    targets = {job.target.resolve() for job in jobs}
    jobs = [j for j in jobs if j.source not in results or j.source.resolve() not in targets]
    doubled = [name for name, n in Counter(job.target for job in jobs).items() if n > 1]
    if doubled:
        raise UserError(
            f"two pictures are called {doubled[0].stem}; predict their folders one by one"
        )
    originals = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.target.resolve() in originals:
            raise UserError(
                f"--output: {job.target} would overwrite a picture; name another folder, or, if it "
                "is a result, leave it as it is by --skip-existing"
            )
    return jobs


def _formats() -> str:
    return " or ".join(FORMATS)
