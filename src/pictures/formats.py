"""Files of images and videos by suffix: what is read, what is written, and by which codec."""

from typing import Any, NamedTuple

IMAGE_SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)
"""Which files of a folder are images."""

DECODERS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
"""Pillow's names of what is read, whatever a file is called. Pillow knows more formats, some of
which start other programs (EPS does)."""


class ImageFormat(NamedTuple):
    """How Pillow writes an image."""

    name: str
    options: dict[str, Any]  # that keep it as it was made


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
"""The images that are written."""


class VideoFormat(NamedTuple):
    """How FFmpeg writes a video."""

    container: str
    codec: str
    options: dict[str, str]


_H264 = ("libx264", {"crf": "16", "preset": "fast"})
_VP9 = ("libvpx-vp9", {"crf": "24", "b": "0", "cpu-used": "4", "row-mt": "1"})
VIDEO_FORMATS: dict[str, VideoFormat] = {
    ".m4v": VideoFormat("mp4", *_H264),
    ".mkv": VideoFormat("matroska", *_H264),
    ".mov": VideoFormat("mov", *_H264),
    ".mp4": VideoFormat("mp4", *_H264),
    ".webm": VideoFormat("webm", *_VP9),
}
"""The videos that are written."""

VIDEO_SUFFIXES = frozenset(VIDEO_FORMATS) | {".avi"}
"""The videos that are read; AVI cannot keep the times of frames."""
