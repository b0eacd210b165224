"""Finds the videos to predict, and names the file or folder of each result; also for a pipe."""

from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ...files import is_stream
from ..formats import (
    IMAGE_FORMATS,
    IMAGE_SUFFIXES,
    TRANSPARENT_FORMATS,
    VIDEO_FORMATS,
    VIDEO_SUFFIXES,
)
from ..search import LeftOut, describe_kind, match_pattern
from .checks import check_overwriting, check_unique, unique_names
from .jobs import PIPE, Job, Jobs


def plan_pipe(output: Path, suffix: str = "", format: str = ".png") -> Job:
    """The job of the image on standard input.

    Args:
        output: a file, a FIFO or device, :data:`~.jobs.PIPE`, or a folder.
        suffix, format: of a result in a folder, as for :func:`~.images.plan_images`.
    """
    is_file = output == PIPE or output.suffix.lower() in IMAGE_FORMATS or is_stream(output)
    return Job(PIPE, output if is_file else output / f"stdin{suffix}{format}")


def plan_videos(
    inputs: Sequence[Path],
    output: Path,
    suffix: str = "",
    frames: bool = False,
    left_out: LeftOut | None = None,
    transparent: bool = False,
) -> Jobs:
    """A job for each video: to a video, or with ``frames`` to a folder.

    Args:
        inputs: the videos, or patterns.
        output: a folder; for a single video also a file, in one of :data:`~.formats.VIDEO_FORMATS`.
        suffix: appended to each name.
        frames: results are folders of images.
        left_out: gets the matches of patterns that are not videos.
        transparent: results have an alpha channel, which few formats of videos hold.

    Raises:
        UserError: a video is missing, or a result would overwrite a video or another result.
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
        return check_overwriting(Jobs([Job(inputs[0], output)]), "video", "file")
    if output.is_file() or output.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
        or_video = "" if frames else f", or a video ({', '.join(sorted(VIDEO_FORMATS))})"
        raise UserError(f"name a folder{or_video}", "output", output)
    endings = []
    for path in inputs:
        default = ".mov" if transparent else ".mp4"
        kept = path.suffix if path.suffix.lower() in formats else default
        endings.append(suffix if frames else f"{suffix}{kept}")
    results = unique_names([path.name for path in inputs], endings)
    check_unique(results, lambda: inputs)
    jobs = (Job(path, output / result) for path, result in zip(inputs, results, strict=True))
    return check_overwriting(Jobs(jobs), "video")


def _find_videos(inputs: Sequence[Path], left_out: LeftOut) -> list[Path]:
    """The videos of all inputs, each once."""
    videos: list[Path] = []
    for path in inputs:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name the videos, or give a pattern")
        for match in [path] if path.exists() else map(Path, match_pattern(path)):
            kind = describe_kind(match)
            if kind == "video" or match == path:
                videos.append(match)
            else:
                left_out.add(match, kind)
    if not videos:
        raise UserError(f"{inputs[0]}: matches no video")
    return list(dict.fromkeys(videos))
