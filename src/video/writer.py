"""Writes videos with PyAV, with the sound of another, and optionally with transparency."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..pictures.formats import TRANSPARENT_FORMATS, VIDEO_FORMATS
from ..pictures.images import to_rgb
from .reader import import_av

_BT709 = 1  # of colour spaces and primaries, in FFmpeg's enumerations
_LIMITED = 1  # colour range 16 … 235


@contextmanager
def naming(target: Path) -> Iterator[None]:
    """Name the file in FFmpeg's errors about writing it."""
    try:
        yield
    except import_av().FFmpegError as error:
        raise UserError(f"{target}: cannot be written as a video ({error.strerror})") from None


class Writer:
    """A video being written; the size of its frames is that of the first result.

    Args:
        out: the open container.
        video: the open source, whose sound, frame rate and pixel aspect ratio are kept.
        target: its suffix chooses the codec.
        transparent: frames are RGBA, and their alpha is kept, not multiplied into the colours.
    """

    def __init__(self, out: Any, video: Any, target: Path, transparent: bool = False) -> None:
        self.out = out
        source = video.streams.video[0]
        self.rate = source.average_rate or Fraction(25)
        self.time_base = source.time_base
        self.aspect = source.sample_aspect_ratio  # of a pixel: not all videos have square ones
        self.begun = False
        # The first stream, for players that show the first one.
        formats = TRANSPARENT_FORMATS if transparent else VIDEO_FORMATS
        chosen = formats[target.suffix.lower()]
        self.layers = chosen.layers
        self.source, self.target = video, target
        self.video = out.add_stream(chosen.codec, self.rate, options=chosen.options)
        self.waiting: list[Any] = []  # packets of sound before the first frame
        self.sounds = {}
        for sound in video.streams.audio:
            try:
                self.sounds[sound.index] = out.add_stream_from_template(sound)
            except (ValueError, import_av().FFmpegError):
                raise self._misfit() from None

    def _misfit(self) -> UserError:
        names = ", ".join(sound.codec_context.name for sound in self.source.streams.audio)
        others = {".webm": ".mov", ".mov": ".webm"} if self.layers else {}
        other = others.get(self.target.suffix.lower(), ".mkv")
        text = f"{self.target}: cannot hold the video's sound ({names})"
        takes = f"such as {other}" if self.layers else f"{other} takes any sound"
        return UserError(f"{text}; choose another container, {takes}")

    def sound(self, packet: Any) -> None:
        """Copy a packet of sound."""
        if packet.dts is None:  # an empty packet marks the end
            return
        self.waiting.append(packet)
        if self.begun:
            self._flush()

    def _flush(self) -> None:
        for packet in self.waiting:
            packet.stream = self.sounds[packet.stream.index]
            with naming(self.target):
                self.out.mux(packet)
        self.waiting.clear()

    def turn(self) -> None:
        """Note that frames are rotated by 90° in the source."""
        if self.aspect:
            self.aspect = 1 / self.aspect

    def write(self, index: int, time: int | None, result: Image.Image) -> None:
        """Encode a frame, shown at ``time`` in the source's units; None places it by its number."""
        if not self.begun:
            self._begin(result)
        pixels = np.asarray(result if self.layers else to_rgb(result))
        named = "rgba" if self.layers else "rgb24"
        frame = import_av().VideoFrame.from_ndarray(pixels, format=named)
        frame = frame.reformat(format=self.video.pix_fmt, dst_colorspace="ITU709")
        frame.pts = index if time is None else time
        frame.time_base = 1 / self.rate if time is None else self.time_base
        with naming(self.target):
            self.out.mux(self.video.encode(frame))

    def _begin(self, result: Image.Image) -> None:
        self.begun = True
        self.video.width, self.video.height = result.size
        even = not (result.width % 2 or result.height % 2)
        self.video.pix_fmt = self.layers or ("yuv420p" if even else "yuv444p")
        if self.layers and self.video.name == "libvpx-vp9":
            self.video.metadata["alpha_mode"] = "1"  # else browsers show no alpha
        context = self.video.codec_context
        context.time_base = self.time_base
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        if self.aspect:
            context.sample_aspect_ratio = self.aspect
        try:
            self.out.start_encoding()  # writes the header, which does not fit all sound
        except import_av().FFmpegError:
            if not self.sounds:
                raise
            raise self._misfit() from None

    def close(self) -> None:
        """Encode the rest, and close the file."""
        self._flush()
        with naming(self.target):
            self.out.mux(self.video.encode(None))
            self.out.close()  # this writes too
