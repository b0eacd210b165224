"""Which images or videos are meant, and the file to write for each."""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..files import check_outputs, find_overwritten, is_stream
from .formats import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    TRANSPARENT_FORMATS,
    VIDEO_FORMATS,
    VIDEO_SUFFIXES,
)
from .search import LeftOut, describe_kind, find_images, match_pattern, named_after_others


@dataclass(frozen=True)
class Job:
    """An image or video, and where its result goes."""

    source: Path
    target: Path


PIPE = Path("-")  # standard input and output


def plan_pipe(output: Path, suffix: str = "", format: str = ".png") -> Job:
    """The job of the image on standard input.

    Args:
        output: a file, a FIFO or device, :data:`PIPE`, or a folder.
        suffix, format: of the result in a folder, as for :func:`plan_images`.
    """
    is_file = output == PIPE or output.suffix.lower() in IMAGE_FORMATS or is_stream(output)
    return Job(PIPE, output if is_file else output / f"stdin{suffix}{format}")


def plan_images(
    inputs: Sequence[Path],
    output: Path,
    suffix: str = "",
    format: str = ".png",
    recursive: bool = False,
    skip_existing: bool = False,
    left_out: LeftOut | None = None,
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
        left_out: gets what lies in folders and patterns and is not used.

    Raises:
        UserError: an input is missing, holds no image, or a result would overwrite an image or
            another result.
    """
    left_out = LeftOut() if left_out is None else left_out
    places = _find_places(inputs, left_out, recursive, output)
    if is_stream(output) or (output.suffix.lower() in IMAGE_FORMATS and not output.is_dir()):
        if len(places) > 1:
            raise UserError(
                f"is one file for {len(places)} images; name a folder", "output", output
            )
        return _check_overwriting([Job(path, output) for path in places], place="file")
    if output.is_file() or output.suffix.lower() in IMAGE_SUFFIXES:
        kinds = " or ".join(IMAGE_FORMATS)
        raise UserError(f"name a folder, or a {kinds} file for one image", "output", output)
    results = _unique_names([(place, f"{suffix}{format}") for place in places.values()])
    jobs = [Job(path, output / result) for path, result in zip(places, results, strict=True)]
    if not suffix and any(path.is_dir() and path.resolve() == output.resolve() for path in inputs):
        raise UserError(
            "is the images' own folder; choose another", "output", output, "or give a {suffix}"
        )
    named = {path for path in inputs if path.is_file()}
    found = set(places) - named if suffix else set()  # may be results of an earlier run
    if skip_existing:
        jobs, found = _leave_out_results(jobs, found, left_out), set()
    _check_overwriting(jobs, skippable=found)
    _note_results(jobs, left_out)
    return jobs


def _find_places(
    inputs: Sequence[Path], left_out: LeftOut, recursive: bool, output: Path
) -> dict[Path, Path]:
    """Of each image, its place below the output."""
    places: dict[Path, Path] = {}
    known: set[Path] = set()
    for path in inputs:
        for image, place in find_images(path, left_out, recursive, output.resolve()).items():
            spelt = image.parent.resolve() / image.name  # a link to a file is an image of its own
            if spelt not in known:
                known.add(spelt)
                places[image] = place
    if not places and left_out.errors:
        raise left_out.errors[0]
    return places


def _note_results(jobs: Sequence[Job], left_out: LeftOut) -> None:
    """Say which images, where results lie beside them, may be results of a run before."""
    here = {job.target.parent.resolve() for job in jobs}
    beside = [job.source for job in jobs if job.source.parent.resolve() in here]
    if likely := named_after_others(beside):
        result, original = next(iter(likely.items()))
        images, are = ("image", "is") if len(likely) == 1 else ("images", "are")
        left_out.notes.append(
            f"{len(likely)} {images} named after others, such as {result} beside {original}, {are} "
            "predicted too; if these are earlier results, leave them out by a pattern, or write "
            "results into a folder of their own"
        )


def plan_videos(
    inputs: Sequence[Path],
    output: Path,
    suffix: str = "",
    frames: bool = False,
    left_out: LeftOut | None = None,
    transparent: bool = False,
) -> list[Job]:
    """A job for each video: to a video, or with ``frames`` to a folder.

    Args:
        inputs: the videos, or patterns.
        output: a folder; for a single video also a file, in one of :data:`~.formats.VIDEO_FORMATS`.
        suffix: appended to each name.
        frames: results are folders of images.
        left_out: gets what patterns match and is no video.
        transparent: results have an alpha channel, which few kinds of videos hold.

    Raises:
        UserError: one is missing, or a result would overwrite a video or another result.
    """
    inputs = _find_videos(inputs, LeftOut() if left_out is None else left_out)
    formats = TRANSPARENT_FORMATS if transparent else VIDEO_FORMATS
    if output.suffix.lower() in VIDEO_FORMATS and not frames:
        if output.suffix.lower() not in formats:
            reason = "holds no transparency; name a .webm or .mov file"
            raise UserError(reason, "output", output, "or let {frames} write images")
        if len(inputs) > 1:
            raise UserError(
                f"is one file for {len(inputs)} videos; name a folder", "output", output
            )
        return _check_overwriting([Job(inputs[0], output)], "video", "file")
    if output.is_file() or output.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        or_video = "" if frames else f", or a video ({', '.join(sorted(VIDEO_FORMATS))})"
        raise UserError(f"name a folder{or_video}", "output", output)
    names = []
    for path in inputs:
        default = ".mov" if transparent else ".mp4"
        kept = path.suffix if path.suffix.lower() in formats else default
        names.append((Path(path.name), suffix if frames else f"{suffix}{kept}"))
    results = _unique_names(names)
    jobs = [Job(path, output / result) for path, result in zip(inputs, results, strict=True)]
    return _check_overwriting(jobs, "video")


def check_targets(jobs: Iterable[Job], inputs: Iterable[str | Path], frames: str = "") -> None:
    """Check, before anything is computed, that the results of jobs can be written.

    Args:
        jobs: those to be done.
        inputs: files that the run reads beside the sources: weights, a background.
        frames: of videos, the suffix of single frames; ``target`` is a folder then.

    Raises:
        UserError: a result cannot be written, or would overwrite an input.
    """
    targets = [job.target / f"000001{frames}" if frames else job.target for job in jobs]
    if frames:  # any of what is in the folder may be a frame
        targets += [path for job in jobs if job.target.is_dir() for path in job.target.iterdir()]
    check_outputs({"output": targets}, inputs)


def _unique_names(places: Sequence[tuple[Path, str]]) -> list[str]:
    """Each place with an ending for its suffix; the suffix stays where two would be the same."""
    whole: set[Path] = set()
    while True:
        results = [f"{p if p in whole else p.with_suffix('')}{ending}" for p, ending in places]
        counts = Counter(results)
        clashing = {p for (p, _), result in zip(places, results, strict=True) if counts[result] > 1}
        if clashing <= whole:
            return results
        whole |= clashing


def _find_videos(inputs: Sequence[Path], left_out: LeftOut) -> list[Path]:
    """The videos of all inputs, each once."""
    videos: list[Path] = []
    for path in inputs:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name the videos, or give a pattern")
        for match in [path] if path.exists() else match_pattern(path):
            kind = describe_kind(match)
            if kind == "video" or match == path:
                videos.append(match)
            else:
                left_out.add(match, kind)
    if not videos:
        raise UserError(f"{inputs[0]}: matches no video")
    return list(dict.fromkeys(videos))


def _leave_out_results(jobs: list[Job], found: set[Path], left_out: LeftOut) -> list[Job]:
    """The jobs without those whose source, among ``found``, is a result of an earlier run."""
    targets = {job.target.resolve() for job in jobs}
    results = {path for path in found if path.resolve() in targets}
    for path in sorted(results):
        left_out.add(path, "result of an earlier run")
    return [job for job in jobs if job.source not in results]


def _check_overwriting(
    jobs: list[Job], kind: str = "image", place: str = "folder", skippable: Container[Path] = ()
) -> list[Job]:
    """The jobs, if none overwrites an input or another's result.

    Args:
        jobs: of all inputs.
        kind: of input, for messages.
        place: what the output is, for messages.
        skippable: inputs that ``skip_existing`` would leave out as results of an earlier run.
    """
    doubled = [name for name, n in Counter(job.target for job in jobs).items() if n > 1]
    if doubled:
        raise UserError(
            f"two {kind}s are called {doubled[0].stem}; predict their folders one by one"
        )
    found = find_overwritten((job.target for job in jobs), (job.source for job in jobs))
    if found:
        target, source = found
        text = f"{target} would overwrite {'an' if kind == 'image' else 'a'} {kind}"
        skip = "if it is an earlier result, {skip_existing} leaves it as it is"
        advice = skip if source in skippable else None
        raise UserError(f"{text}; name another {place}", "output", advice=advice)
    return jobs
