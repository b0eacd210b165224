"""Image and video formats by suffix: which are read, which are written, and with which codec."""

from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

_NOT_READ = {
    "BUFR", "GRIB", "HDF5", "WMF",  # known by name only: Pillow has no decoder
    "EPS",  # starts another program
    "MPEG", "PCD", "IPTC",  # videos; point clouds by the same suffix; text about images
}  # fmt: skip


def _list_decoders() -> dict[str, list[str]]:
    """Pillow's names of the formats that it decodes by itself, and the suffixes of each."""
    Image.init()
    found: dict[str, list[str]] = {}
    for suffix, name in Image.registered_extensions().items():
        if name in Image.OPEN and name not in _NOT_READ:
            found.setdefault(name, []).append(suffix)
    weakest = ("ICO", "CUR", "TGA")  # recognised by a few zeros, so tried last
    return dict(sorted(found.items(), key=lambda item: (item[0] in weakest, item[0])))


_BY_DECODER = _list_decoders()

DECODERS = tuple(_BY_DECODER)
"""Pillow's names of the formats that are read, whatever a file's suffix."""

IMAGE_SUFFIXES = frozenset(
    {suffix for suffixes in _BY_DECODER.values() for suffix in suffixes}
    | {".heic", ".heics", ".heif", ".heifs", ".hif"}  # with pillow-heif
)
"""The suffixes of the files in a folder that count as images."""


class ImageFormat(NamedTuple):
    """How Pillow writes an image."""

    name: str
    options: dict[str, Any]  # chosen for quality


_JPEG = ImageFormat("JPEG", {"quality": 95, "subsampling": 0})
_TIFF = ImageFormat("TIFF", {"compression": "tiff_adobe_deflate"})
IMAGE_FORMATS: dict[str, ImageFormat] = {
    ".png": ImageFormat("PNG", {"compress_level": 4}),  # 0.4 of the default's time, 5 % more bytes
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": ImageFormat("WEBP", {"lossless": True, "exact": True, "method": 2, "quality": 50}),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".avif": ImageFormat("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
}
"""The image formats that are written."""


def result_format(path: Path, default: str) -> str:
    """The suffix of the format to write to a path; ``default`` if its name has no such suffix, like
    a FIFO or a device.

    Example:
        >>> result_format(Path("a.JPG"), ".png"), result_format(Path("/dev/null"), ".png")
        ('.jpg', '.png')
    """
    suffix = path.suffix.lower()
    return suffix if suffix in IMAGE_FORMATS else default


class VideoFormat(NamedTuple):
    """How FFmpeg writes a video."""

    container: str
    codec: str
    options: dict[str, str]
    layers: str = ""  # the pixel format with alpha


_H264 = ("libx264", {"crf": "16", "preset": "fast"})
_VP9 = ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "1"})
VIDEO_FORMATS: dict[str, VideoFormat] = {
    ".m4v": VideoFormat("mp4", *_H264),
    ".mkv": VideoFormat("matroska", *_H264),
    ".mov": VideoFormat("mov", *_H264),
    ".mp4": VideoFormat("mp4", *_H264),
    ".webm": VideoFormat("webm", *_VP9),
}
"""The video formats that are written."""

TRANSPARENT_FORMATS: dict[str, VideoFormat] = {
    ".mov": VideoFormat(
        "mov", "prores_ks", {"profile": "4444", "alpha_bits": "16"}, "yuva444p10le"
    ),
    ".webm": VideoFormat("webm", _VP9[0], _VP9[1] | {"auto-alt-ref": "0"}, "yuva420p"),
}
"""The video formats that are written with transparency: ProRes 4444 for editors, VP9 for
browsers."""

VIDEO_SUFFIXES = frozenset(VIDEO_FORMATS) | {
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2ts", ".m2v", ".mjpeg"),
    *(".mjpg", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".rmvb"),
    *(".ts", ".vob", ".wmv", ".y4m"),
}
"""The video formats that are read; those that are not written become mp4."""
