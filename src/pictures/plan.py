"""Which images or videos are meant, and the file to write for each."""

import glob
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .formats import IMAGE_FORMATS, IMAGE_SUFFIXES, VIDEO_FORMATS, VIDEO_SUFFIXES
from .images import list_images


@dataclass(frozen=True)
class Job:
    """An image or video, and where its result goes."""

    source: Path
    target: Path


def plan_images(
    inputs: Sequence[Path],
    output: Path,
    suffix: str = "",
    format: str = ".png",
    recursive: bool = False,
    skip_existing: bool = False,
) -> list[Job]:
    """A job for each image, in order, each image once.

    Args:
        inputs: images, folders of them, or patterns (``*``, ``?``, ``**``).
        output: a folder; for a single image also a file, in one of :data:`~.formats.IMAGE_FORMATS`.
        suffix: appended to each name, before the format's suffix.
        format: the format's suffix, where ``output`` is a folder.
        recursive: read folders with all below them, and make the same folders in ``output``.
        skip_existing: images among the inputs that have a result's name are results of an earlier
            run, and no inputs.

    Raises:
        UserError: an input is missing, holds no image, or a result would overwrite an image or
            another result.
    """
    places: dict[Path, Path] = {}  # of each image, its place below the output
    known: set[Path] = set()
    for path in inputs:
        for image, place in _find_images(path, output, recursive).items():
            spelt = image.parent.resolve() / image.name  # a link to a file is an image of its own
            if spelt not in known:
                known.add(spelt)
                places[image] = place
    if output.suffix.lower() in IMAGE_FORMATS and not output.is_dir():
        if len(places) > 1:
            raise UserError(
                f"is one file for {len(places)} images; name a folder", "output", output
            )
        return _check_overwriting([Job(path, output) for path in places])
    if output.is_file() or output.suffix.lower() in IMAGE_SUFFIXES:
        kinds = " or ".join(IMAGE_FORMATS)
        raise UserError(f"name a folder, or a {kinds} file for one image", "output", output)
    results = _unique_names(list(places.values()))
    jobs = [
        Job(path, output / f"{result}{suffix}{format}")
        for path, result in zip(places, results, strict=True)
    ]
    if not suffix and any(path.is_dir() and path.resolve() == output.resolve() for path in inputs):
        raise UserError(
            "is the images' own folder; choose another", "output", output, "or give a {suffix}"
        )
    named = {path for path in inputs if path.is_file()}
    return _check_overwriting(jobs, set(places) - named if suffix and skip_existing else set())


def plan_videos(
    inputs: Sequence[Path], output: Path, suffix: str = "", frames: bool = False
) -> list[Job]:
    """A job for each video: to a video, or with ``frames`` to a folder.

    Args:
        inputs: the videos.
        output: a folder; for a single video also a file, in one of :data:`~.formats.VIDEO_FORMATS`.
        suffix: appended to each name.
        frames: results are folders of images.

    Raises:
        UserError: one is missing, or a result would overwrite a video or another result.
    """
    for path in inputs:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    if output.suffix.lower() in VIDEO_FORMATS and not frames:
        if len(inputs) > 1:
            raise UserError(
                f"is one file for {len(inputs)} videos; name a folder", "output", output
            )
        return _check_overwriting([Job(inputs[0], output)])
    if output.is_file() or output.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        or_video = "" if frames else f", or a video ({', '.join(sorted(VIDEO_FORMATS))})"
        raise UserError(f"name a folder{or_video}", "output", output)
    jobs = []
    for path in dict.fromkeys(inputs):
        kept = path.suffix if path.suffix.lower() in VIDEO_FORMATS else ".mp4"
        jobs.append(Job(path, output / f"{path.stem}{suffix}{'' if frames else kept}"))
    return _check_overwriting(jobs)


def _unique_names(places: Sequence[Path]) -> list[Path]:
    """Each image's place without its suffix; the suffix stays where two would be the same."""
    whole: set[Path] = set()
    while True:
        results = [place if place in whole else place.with_suffix("") for place in places]
        counts = Counter(results)
        clashing = {p for p, result in zip(places, results, strict=True) if counts[result] > 1}
        if clashing <= whole:
            return results
        whole |= clashing


def _find_images(path: Path, output: Path, recursive: bool) -> dict[Path, Path]:
    """The images of one input, and the place of each below the output."""
    if path.is_dir():
        images = _walk(path, output.resolve()) if recursive else list_images(path)
        if not images:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            advice = None if recursive else "{recursive} searches its folders"
            raise UserError(f"{path}: holds no images ({kinds})", advice=advice)
        return {image: image.relative_to(path) for image in images}
    if path.exists():
        return {path: Path(path.name)}
    if not glob.has_magic(str(path)):
        raise UserError(f"{path}: no such file or folder")
    # Where the pattern leads through folders, they are kept below its last literal one.
    parts = path.parts[: next(i for i, part in enumerate(path.parts) if glob.has_magic(part))]
    above = Path(*parts)
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    images = [match for match in matches if match.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise UserError(f"{path}: matches no image")
    return {image: image.relative_to(above) for image in images}


def _walk(folder: Path, output: Path) -> list[Path]:
    """All images below a folder, without earlier results and hidden folders."""
    images = list_images(folder)
    for inner in sorted(folder.iterdir()):
        # A link to a folder may lead round in a circle.
        hidden = inner.name.startswith(".") or inner.is_symlink()
        if inner.is_dir() and not hidden and inner.resolve() != output:
            images += _walk(inner, output)
    return images


def _check_overwriting(jobs: list[Job], earlier: set[Path] | None = None) -> list[Job]:
    """The jobs, if none overwrites an input or another's result.

    ``earlier``: inputs that are left out if they turn out to be results of an earlier run.
    """
    targets = {job.target.resolve() for job in jobs}
    earlier = earlier or set()
    jobs = [job for job in jobs if job.source not in earlier or job.source.resolve() not in targets]
    doubled = [name for name, n in Counter(job.target for job in jobs).items() if n > 1]
    if doubled:
        raise UserError(
            f"two images are called {doubled[0].stem}; predict their folders one by one"
        )
    originals = {job.source.resolve() for job in jobs}
    for job in jobs:
        if job.target.resolve() in originals:
            raise UserError(
                f"{job.target} would overwrite an image; name another folder",
                "output",
                advice="if it is an earlier result, {skip_existing} leaves it as it is",
            )
    return jobs
