"""Reads videos with PyAV: frames upright, packets of sound unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import UserError

if TYPE_CHECKING:
    from .writer import Writer

Frame = tuple[int, int | None, Image.Image]  # number, time in the video's units, upright image


def read_frames(video: Any, writer: "Writer | None" = None) -> Iterator[Frame]:
    """The frames of an open video.

    Args:
        video: of :func:`open_video`.
        writer: gets the packets of sound on the way; without it they are not read.
    """
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
            if writer and frame.rotation % 180 and not index:
                writer.turn()
            # Phones store the rotation separately from the frames.
            yield index, frame.pts, image.rotate(frame.rotation, expand=True)
            index += 1


def count_frames(video: Any, source: Path) -> int | None:
    """The number of frames by the video's header; None if it does not say.

    Raises:
        UserError: it has no images.
    """
    if not video.streams.video:
        raise UserError(f"{source}: holds no images")
    return video.streams.video[0].frames or None


def import_av() -> Any:
    """PyAV.

    Raises:
        UserError: it is missing.
    """
    try:
        import av
    except ImportError:
        raise UserError("videos need PyAV: pip install '.[video]'") from None
    return av


@contextmanager
def open_video(source: Path) -> Iterator[Any]:
    """Open the video in this very file, and name it in FFmpeg's errors."""
    av = import_av()
    # Not the name, which FFmpeg would treat as a URL (12:30.mp4, http:…, concat:…); and a playlist
    # inside the file must not lead to other files or to the network.
    sealed = {"protocol_whitelist": "none"}
    try:
        with source.open("rb") as file, av.open(file, options=sealed) as video:
            yield video
    except av.FFmpegError as error:
        raise UserError(f"{source}: cannot be read as a video ({error.strerror})") from None
