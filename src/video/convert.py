"""Videos in, videos or single frames out, by PyAV; the sound is copied as it is."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import atomic_path, clear_temporary
from ..inference.predictor import Predictor
from ..inference.stream import stream
from ..pictures.formats import IMAGE_FORMATS, VIDEO_FORMATS
from ..pictures.images import to_rgb
from ..pictures.render import Style, encode, render

_BT709 = 1  # of colour spaces and primaries, in FFmpeg's enumerations
_LIMITED = 1  # colour range 16 … 235
Frame = tuple[int, int | None, Image.Image]  # number, time in the video's units, upright image


def convert_video(
    predictor: Predictor, source: Path, target: Path, style: Style
) -> Iterator[int | None]:
    """Predict each frame of a video, and write a video of the results with the same sound.

    Times of frames are kept, so that videos of varying rate stay in step with their sound. H.264,
    or VP9 in ``.webm``; 4:2:0 where width and height are even, else 4:4:4.

    Args:
        predictor: of the maps.
        source: the video.
        target: its suffix, one of :data:`~..pictures.formats.VIDEO_FORMATS`, chooses the container;
            it is written whole or not at all.
        style: any mode but ``cutout``, and not cropped: a video has one size and no transparency.

    Yields:
        The number of frames by the video's header (None if it does not say), then 1 for each frame
        written.

    Raises:
        UserError: PyAV is missing; the video is torn or has no frames, or its sound does not fit
            into the container of ``target``.
    """
    if style.mode == "cutout":
        raise UserError(f"{target}: a video takes no cut-outs", advice="{frames} writes images")
    if style.crop:
        raise UserError(
            f"{target}: all frames of a video have one size", advice="{crop} goes with {frames}"
        )
    with _open_video(source) as video, atomic_path(target) as temporary:
        yield _count_frames(video, source)
        container = VIDEO_FORMATS[target.suffix.lower()].container
        # An open file, as FFmpeg takes names for addresses: 12:30.mp4, http:…
        with temporary.open("wb") as file, _av().open(file, "w", format=container) as out:
            writer = _Writer(out, video, target)
            for index, (time, result) in _results_in_order(predictor, video, writer, style):
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
) -> Iterator[int | None]:
    """As :func:`convert_video`, with each frame as an image ``folder/000001.png`` and so on.

    Any mode. Frames are in another folder until the last one is written. Then they take the place
    of the folder's earlier frames, if it has any: what is left of those, of a longer video, is
    removed, and reported. Other files in the folder stay as they are.

    Args:
        predictor: of the maps.
        source: the video.
        folder: of the frames.
        style: of each frame.
        suffix: of each frame, one of :data:`~..pictures.formats.IMAGE_FORMATS`.
        report: gets a sentence about earlier frames.

    Yields:
        As :func:`convert_video`.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; frames need a folder of that name")
    part = _part(folder)
    with _open_video(source) as video:
        yield _count_frames(video, source)
        count = 0
        for index, (_, result) in _results_in_order(predictor, video, None, style):
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
    """Whether :func:`convert_frames` has come to its end in this folder, with no frame missing.

    Args:
        folder: of the frames; it need not exist.
        suffix: of each frame.
    """
    numbers = sorted(int(frame.stem) for frame in _frames(folder, suffix))
    whole = numbers == list(range(1, len(numbers) + 1))
    return bool(numbers) and whole and not _part(folder).exists()


def _part(folder: Path) -> Path:
    """Where frames are until all are written."""
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
        report(f"{folder}: removed {len(leftover)} earlier frames, as this video has {count}")


class _Writer:
    """The video that is being written; the size of its frames is known with the first result."""

    def __init__(self, out: Any, video: Any, target: Path) -> None:
        self.out = out
        source = video.streams.video[0]
        self.rate = source.average_rate or Fraction(25)
        self.time_base = source.time_base
        self.aspect = source.sample_aspect_ratio  # of a pixel: not all videos have square ones
        self.begun = False
        # The first stream, for players that show the first one.
        chosen = VIDEO_FORMATS[target.suffix.lower()]
        self.video = out.add_stream(chosen.codec, self.rate, options=chosen.options)
        self.waiting: list[Any] = []  # packets of sound before the first frame
        self.sounds = {}
        for sound in video.streams.audio:
            try:
                self.sounds[sound.index] = out.add_stream_from_template(sound)
            except (ValueError, _av().FFmpegError):
                raise UserError(
                    f"{target}: cannot hold the video's sound ({sound.codec_context.name}); "
                    "choose another container, .mkv takes any"
                ) from None

    def sound(self, packet: Any) -> None:
        """Copy a packet of sound."""
        if packet.dts is None:  # an empty one marks the end
            return
        self.waiting.append(packet)
        if self.begun:
            self._flush()

    def _flush(self) -> None:
        for packet in self.waiting:
            packet.stream = self.sounds[packet.stream.index]
            self.out.mux(packet)
        self.waiting.clear()

    def write(self, index: int, time: int | None, result: Image.Image) -> None:
        av = _av()
        if not self.begun:
            self._begin(result)
        frame = av.VideoFrame.from_image(to_rgb(result)).reformat(
            format=self.video.pix_fmt, dst_colorspace="ITU709"
        )
        frame.pts = index if time is None else time
        frame.time_base = 1 / self.rate if time is None else self.time_base
        self.out.mux(self.video.encode(frame))

    def _begin(self, result: Image.Image) -> None:
        self.begun = True
        self.video.width, self.video.height = result.size
        even = not (result.width % 2 or result.height % 2)
        self.video.pix_fmt = "yuv420p" if even else "yuv444p"
        context = self.video.codec_context
        context.time_base = self.time_base
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        if self.aspect:
            context.sample_aspect_ratio = self.aspect

    def close(self) -> None:
        self._flush()
        self.out.mux(self.video.encode(None))


def _read_frames(video: Any, writer: _Writer | None) -> Iterator[Frame]:
    """The frames; sound is handed to the writer on the way."""
    stream = video.streams.video[0]
    stream.thread_type = "AUTO"
    sounds = video.streams.audio if writer else ()
    index = 0
    for packet in video.demux(stream, *sounds):
        if writer and packet.stream.type == "audio":
            writer.sound(packet)
            continue
        for frame in packet.decode():
            image = frame.to_image()
            if writer and frame.rotation % 180 and not index and writer.aspect:
                writer.aspect = 1 / writer.aspect
            # Phones store the rotation beside the frames.
            yield index, frame.pts, image.rotate(frame.rotation, expand=True)
            index += 1


def _results_in_order(
    predictor: Predictor, video: Any, writer: _Writer | None, style: Style
) -> Iterator[tuple[int, tuple[int | None, Image.Image]]]:
    """Number, time and result of each frame; few have to wait, as few are in memory."""

    def load(frame: Frame) -> Image.Image:
        return frame[2]

    def finish(frame: Frame, image: Image.Image, saliency: np.ndarray) -> Image.Image:
        return render(image, saliency, style)

    def pixels(frame: Frame) -> int:
        return frame[2].width * frame[2].height

    early: dict[int, tuple[int | None, Image.Image]] = {}
    due = 0
    frames = _read_frames(video, writer)
    for (index, time, _), result in stream(predictor, frames, load, finish, pixels):
        if isinstance(result, UserError):
            raise UserError(f"{video.name}: frame {index + 1}: {result}")
        early[index] = (time, result)
        while due in early:
            yield due, early.pop(due)
            due += 1
    if not due:
        raise UserError(f"{video.name}: holds no frame")


def _count_frames(video: Any, source: Path) -> int | None:
    if not video.streams.video:
        raise UserError(f"{source}: holds no images")
    return video.streams.video[0].frames or None


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install '.[video]'") from None
    return av


@contextmanager
def _open_video(source: Path) -> Iterator[Any]:
    """The video in this very file; FFmpeg's errors get its name."""
    av = _av()
    # Not the name, which FFmpeg would take for an address (12:30.mp4, http:…, concat:…); and a
    # playlist inside the file may not lead to other files or to the network.
    sealed = {"protocol_whitelist": "none"}
    try:
        with source.open("rb") as file, av.open(file, options=sealed) as video:
            yield video
    except av.FFmpegError as error:
        raise UserError(f"{source}: cannot be read as a video ({error.strerror})") from None
