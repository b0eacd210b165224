"""Videos in, videos or single frames out, by PyAV; the sound is copied as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import atomic_path
from ..pictures.formats import VIDEO_FORMATS
from ..pictures.images import to_rgb
from ..pictures.render import Style, encode, render
from .predictor import Predictor
from .stream import stream

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
    av = _av()
    with _readable(source), av.open(str(source)) as video, atomic_path(target) as temporary:
        yield _count_frames(video, source)
        container = VIDEO_FORMATS[target.suffix.lower()].container
        with av.open(str(temporary), "w", format=container) as out:
            writer = _Writer(out, video, target)
            for index, (time, result) in _results_in_order(predictor, video, writer, style):
                writer.write(index, time, result)
                yield 1
            writer.close()


def convert_frames(
    predictor: Predictor, source: Path, folder: Path, style: Style, suffix: str
) -> Iterator[int | None]:
    """As :func:`convert_video`, with each frame as an image ``folder/000001.png`` and so on.

    Any mode. A new folder has another name until the last frame is in it.
    """
    part = folder if folder.exists() else folder.with_name(f"{folder.name}.part")
    with _readable(source), _av().open(str(source)) as video:
        yield _count_frames(video, source)
        for index, (_, result) in _results_in_order(predictor, video, None, style):
            with atomic_path(part / f"{index + 1:06}{suffix}") as temporary:
                encode(result, temporary, suffix)
            yield 1
    part.rename(folder)


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
def _readable(source: Path) -> Iterator[None]:
    """FFmpeg's errors with the video's name."""
    av = _av()
    try:
        yield
    except av.FFmpegError as error:
        raise UserError(f"{source}: cannot be read as a video ({error.strerror})") from None
