"""Films in, films or single frames out, by PyAV; the sound goes along as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..files import atomic_path
from ..pictures.images import to_rgb
from ..pictures.render import Style, encode, render
from .predictor import Predictor
from .stream import stream

_CODECS = {".webm": ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "1"})}
_H264 = ("libx264", {"crf": "16", "preset": "fast"})
_BT709 = 1  # of colour spaces and primaries, in FFmpeg's enumerations
_LIMITED = 1  # colour range 16 … 235


def convert(predictor: Predictor, source: Path, target: Path, style: Style) -> Iterator[int | None]:
    """Predict each frame of a film, and write a film of the results with the film's sound.

    Times of frames are kept, so that films of varying rate stay in step with their sound. H.264, or
    VP9 in ``.webm``; 4:2:0 where width and height are even, else 4:4:4.

    Args:
        predictor: of the maps.
        source: the film.
        target: its suffix, of :data:`~.jobs.FILMS`, chooses the container; whole or not at all.
        style: any mode but ``cutout``, and not cropped: a film has one size and no transparency.

    Yields:
        How many frames the film says it has (None if it does not), then 1 for each written.

    Raises:
        UserError: PyAV is missing; the film is torn, has no picture, or sound that the container of
            ``target`` does not take.
    """
    if style.mode == "cutout" or style.crop:
        raise UserError(f"{target}: a film takes no cut-outs and no --crop; --frames writes them")
    av = _av()
    with _readable(source), av.open(str(source)) as film, atomic_path(target) as temporary:
        yield _count(film, source)
        form = {".mkv": "matroska", ".m4v": "mp4"}.get(target.suffix.lower(), target.suffix[1:])
        with av.open(str(temporary), "w", format=form) as out:
            writer = _Writer(out, film, target)
            for index, (time, result) in _in_order(predictor, film, writer, style):
                writer.write(index, time, result)
                yield 1
            writer.close()


def convert_frames(
    predictor: Predictor, source: Path, folder: Path, style: Style, suffix: str
) -> Iterator[int | None]:
    """As :func:`convert`, but each frame to a picture ``folder/000001.png`` and so on, any mode.

    A folder that was not there before has another name until the last frame is in it.
    """
    part = folder if folder.exists() else folder.with_name(f"{folder.name}.part")
    with _readable(source), _av().open(str(source)) as film:
        yield _count(film, source)
        for index, (_, result) in _in_order(predictor, film, None, style):
            with atomic_path(part / f"{index + 1:06}{suffix}") as temporary:
                encode(result, temporary, suffix)
            yield 1
    part.rename(folder)


class _Writer:
    """The film that is being written; its picture's size is known with the first frame."""

    def __init__(self, out: Any, film: Any, target: Path) -> None:
        self.out, self.film = out, film
        self.codec, self.options = _CODECS.get(target.suffix.lower(), _H264)
        source = film.streams.video[0]
        self.rate = source.average_rate or Fraction(25)
        self.time_base = source.time_base
        self.aspect = source.sample_aspect_ratio  # of a pixel: films may hold narrow ones
        self.begun = False
        # First of all, for programs that show a film's first stream.
        self.video = out.add_stream(self.codec, self.rate, options=self.options)
        self.waiting: list[Any] = []  # packets of sound before the first frame
        self.sounds = {}
        for sound in film.streams.audio:
            try:
                self.sounds[sound.index] = out.add_stream_from_template(sound)
            except (ValueError, _av().FFmpegError):
                raise UserError(
                    f"{target}: cannot hold the film's sound ({sound.codec_context.name}); "
                    "choose another container, .mkv takes any"
                ) from None

    def sound(self, packet: Any) -> None:
        """A packet of sound goes through as it is."""
        if packet.dts is None:  # the empty one at the end
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


def _frames(film: Any, writer: _Writer | None) -> Iterator[tuple[int, int | None, Image.Image]]:
    """Number, time and upright picture of each frame; sound is handed to the writer on the way."""
    video = film.streams.video[0]
    video.thread_type = "AUTO"
    sounds = film.streams.audio if writer else ()
    index = 0
    for packet in film.demux(video, *sounds):
        if packet.stream.type == "audio":
            writer.sound(packet)
            continue
        for frame in packet.decode():
            image = frame.to_image()
            if writer and frame.rotation % 180 and not index and writer.aspect:
                writer.aspect = 1 / writer.aspect
            # What telephones write in place of turning the picture.
            yield index, frame.pts, image.rotate(frame.rotation, expand=True)
            index += 1


def _in_order(
    predictor: Predictor, film: Any, writer: _Writer | None, style: Style
) -> Iterator[tuple[int, tuple[int | None, Image.Image]]]:
    """Results in the order of the frames; few have to wait, as few are in memory."""

    def finish(frame: tuple, picture: Image.Image, saliency: np.ndarray) -> Image.Image:
        return render(picture, saliency, style)

    def pixels(frame: tuple) -> int:
        return frame[2].width * frame[2].height

    early, due = {}, 0
    frames = _frames(film, writer)
    for (index, time, _), result in stream(predictor, frames, lambda f: f[2], finish, pixels):
        if isinstance(result, UserError):
            raise UserError(f"{film.name}: {result}")
        early[index] = (time, result)
        while due in early:
            yield due, early.pop(due)
            due += 1
    if not due:
        raise UserError(f"{film.name}: holds no frame")


def _count(film: Any, source: Path) -> int | None:
    if not film.streams.video:
        raise UserError(f"{source}: holds no picture")
    return film.streams.video[0].frames or None


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise UserError("films need PyAV: pip install '.[video]'") from None
    return av


@contextmanager
def _readable(source: Path) -> Iterator[None]:
    """FFmpeg's errors with the film's name."""
    av = _av()
    try:
        yield
    except av.FFmpegError as error:
        raise UserError(f"{source}: cannot be read as a film ({error.strerror})") from None
