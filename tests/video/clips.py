"""Videos, made where they are needed, and read back."""

from fractions import Fraction

import numpy as np
import pytest
from helpers.data import make_scene
from PIL import Image

av = pytest.importorskip("av", reason="PyAV is not installed")


def make_video(path, times=range(8), sound="aac", size=(64, 48), aspect=None):
    """Frames at ``times`` of a tenth of a second each, and a tone."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", 10, options={"crf": "5"})
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, 10)
        if aspect:
            video.codec_context.sample_aspect_ratio = aspect
        audio = out.add_stream(sound, 8000, layout="mono") if sound else None
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_image(Image.fromarray(make_scene(i, *size)[0]))
            frame.pts, frame.time_base = time, Fraction(1, 10)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio:
            tone = (np.sin(np.arange(6400) / 5) * 9000).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(tone, "s16", "mono")
            frame.sample_rate, frame.pts = 8000, 0
            out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
    return path


def read(path):
    """Times of the frames in seconds, the frames, and the packets of sound."""
    with av.open(str(path)) as video:
        frames = [
            (float(f.pts * f.time_base), np.array(f.to_image())) for f in video.decode(video=0)
        ]
    with av.open(str(path)) as video:
        sound = [bytes(p) for p in video.demux(audio=0) if p.size] if video.streams.audio else []
    return [time for time, _ in frames], [frame for _, frame in frames], sound


def read_alpha(path):
    """The frames as RGBA, H×W×4; VP9's alpha is in a stream that libvpx alone reads."""
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        name = {"vp9": "libvpx-vp9"}.get(stream.codec_context.name)
        decoder = av.CodecContext.create(name, "r") if name else stream.codec_context
        frames = [frame for packet in video.demux(stream) for frame in decoder.decode(packet)]
    return [frame.to_ndarray(format="rgba") for frame in frames]
