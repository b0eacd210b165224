"""Videos in, videos or single frames out, with PyAV; the sound is copied unchanged."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import atomic_path, clear_temporary
from ..inference.predictor import Predictor
from ..inference.stream import stream
from ..pictures.formats import IMAGE_FORMATS, TRANSPARENT_FORMATS, VIDEO_FORMATS
from ..pictures.render import Style, encode, render
from ..words import counted
from .reader import Frame, count_frames, import_av, open_video, read_frames
from .steady import Steady
from .writer import Writer

T = TypeVar("T")
Result = tuple[int, tuple[int | None, Image.Image]]  # number, time, result


def convert_video(
    predictor: Predictor, source: Path, target: Path, style: Style, steady: bool = False
) -> Iterator[int | None]:
    """Predict each frame of a video, and write a video of the results with the same sound.

    Times of frames are kept, so that videos of varying rate stay in step with their sound. H.264,
    or VP9 in ``.webm``; 4:2:0 where width and height are even, else 4:4:4. Cut-outs are
    transparent: VP9 with alpha in ``.webm``, ProRes 4444 in ``.mov``.

    Args:
        predictor: computes the maps.
        source: the video.
        target: its suffix, one of :data:`~..pictures.formats.VIDEO_FORMATS`, chooses the container;
            it is written whole or not at all.
        style: without ``crop``, as a video has one size.
        steady: average maps over time, see :class:`~.steady.Steady`.

    Yields:
        The number of frames by the video's header (None if it does not say), then 1 for each frame
        written.

    Raises:
        UserError: PyAV is missing, or OpenCV for ``steady``; the video is corrupt or has no frames,
            or its sound or transparency does not fit into the container of ``target``.
    """
    transparent = style.mode == "cutout"
    if transparent and target.suffix.lower() not in TRANSPARENT_FORMATS:
        advice = "name a .webm or .mov file, or let {frames} write images"
        raise UserError(f"{target}: holds no transparency", advice=advice)
    if style.crop:
        raise UserError(
            f"{target}: all frames of a video have one size", advice="{crop} goes with {frames}"
        )
    with open_video(source) as video, atomic_path(target) as temporary:
        yield count_frames(video, source)
        container = VIDEO_FORMATS[target.suffix.lower()].container
        # An open file, as FFmpeg treats names as URLs: 12:30.mp4, http:…
        with temporary.open("wb") as file, import_av().open(file, "w", format=container) as out:
            writer = Writer(out, video, target, transparent)
            for index, (time, result) in _results(predictor, video, writer, style, steady):
                writer.write(index, time, result)
                yield 1
            writer.close()


def convert_frames(
    predictor: Predictor,
    source: Path,
    folder: Path,
    style: Style,
    suffix: str,
    report: Callable[[str], None],
    steady: bool = False,
) -> Iterator[int | None]:
    """As :func:`convert_video`, with each frame as an image ``folder/000001.png`` and so on.

    Any mode. Frames are in another folder until the last one is written. Then they replace the
    folder's earlier frames, if any: those beyond the last, from a longer video, are removed and
    reported. Other files in the folder are not changed.

    Args:
        predictor: computes the maps.
        source: the video.
        folder: of the frames.
        style: of each frame.
        suffix: of each frame, one of :data:`~..pictures.formats.IMAGE_FORMATS`.
        report: gets a sentence about earlier frames.
        steady: as for :func:`convert_video`.

    Yields:
        As :func:`convert_video`.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; frames need a folder of that name")
    part = _part(folder)
    with open_video(source) as video:
        yield count_frames(video, source)
        count = 0
        for index, (_, result) in _results(predictor, video, None, style, steady):
            count = index + 1
            with atomic_path(part / f"{count:06}{suffix}") as temporary:
                encode(result, temporary, suffix)
            yield 1
    _remove_frames(part, suffix, count, report)  # of a run that was killed
    clear_temporary(part)
    if folder.exists():
        _remove_frames(folder, suffix, count, report)
        others = sorted({p.suffix[1:] for p in _frames(folder, ".*") if p.suffix != suffix})
        if others:
            report(f"{folder}: holds earlier frames in other formats too ({', '.join(others)})")
        for frame in _frames(part, suffix):
            frame.replace(folder / frame.name)
        part.rmdir()
    else:
        part.rename(folder)


def has_all_frames(folder: Path, suffix: str) -> bool:
    """Whether :func:`convert_frames` has finished in this folder, with no frame missing.

    Args:
        folder: of the frames; it need not exist.
        suffix: of each frame.
    """
    numbers = sorted(int(frame.stem) for frame in _frames(folder, suffix))
    whole = numbers == list(range(1, len(numbers) + 1))
    return bool(numbers) and whole and not _part(folder).exists()


def _part(folder: Path) -> Path:
    """The folder that holds frames until all are written."""
    return folder.with_name(f"{folder.name}.part")


def _frames(folder: Path, suffix: str) -> list[Path]:
    """The frames in a folder; ``.*`` for those in any format."""
    kinds = IMAGE_FORMATS if suffix == ".*" else (suffix,)
    files = folder.iterdir() if folder.is_dir() else ()
    return [p for p in files if re.fullmatch(r"\d{6,}", p.stem, re.ASCII) and p.suffix in kinds]


def _remove_frames(folder: Path, suffix: str, count: int, report: Callable[[str], None]) -> None:
    """Remove earlier frames after the last of ``count``."""
    leftover = [frame for frame in _frames(folder, suffix) if int(frame.stem) > count]
    for frame in leftover:
        frame.unlink()
    if leftover:
        removed = counted(len(leftover), "earlier frame")
        report(f"{folder}: removed {removed}, as this video has {count}")


def _results(
    predictor: Predictor, video: Any, writer: Writer | None, style: Style, steady: bool
) -> Iterator[Result]:
    """Number, time and result of each frame, in order."""
    if not steady:
        yield from _in_order(
            predictor, video, writer, lambda image, saliency: render(image, saliency, style)
        )
        return
    mean = Steady()
    for index, (time, (image, saliency)) in _in_order(
        predictor, video, writer, lambda image, saliency: (image, saliency)
    ):
        yield index, (time, render(image, mean.add(image, saliency), style))


def _in_order(
    predictor: Predictor,
    video: Any,
    writer: Writer | None,
    make: Callable[[Image.Image, np.ndarray], T],
) -> Iterator[tuple[int, tuple[int | None, T]]]:
    """Number, time and result of each frame, in order; few wait, as few are in memory."""

    def load(frame: Frame) -> Image.Image:
        return frame[2]

    def finish(frame: Frame, image: Image.Image, saliency: np.ndarray) -> T:
        return make(image, saliency)

    def pixels(frame: Frame) -> int:
        return frame[2].width * frame[2].height

    early: dict[int, tuple[int | None, T]] = {}
    due = 0
    frames = read_frames(video, writer)
    for (index, time, _), result in stream(predictor, frames, load, finish, pixels):
        if isinstance(result, UserError):
            raise UserError(f"{video.name}: frame {index + 1}: {result}")
        early[index] = (time, result)
        while due in early:
            yield due, early.pop(due)
            due += 1
    if not due:
        raise UserError(f"{video.name}: holds no frame")
