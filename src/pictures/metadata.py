"""The metadata of image files: EXIF with GPS, resolution, XMP, comments, texts."""

import io
import math
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import ImageFileDirectory_v2

Info = dict[str | tuple[int, int], Any]  # as Pillow types an image's
_MAX_SEGMENT = 65_000  # bytes in a JPEG segment, with room for its marker
_ORIENTATION, _EXIF_IFD, _GPS_IFD, _INTEROP_IFD = 274, 34665, 34853, 40965
_WIDTHS_OF_TYPES = dict(enumerate((1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4), 1))  # in bytes
_UNDEFINED = 7  # a TIFF type
_PICTURES = ((513, 514), (273, 279))  # tags of the offsets and lengths of embedded pictures
_WIDTHS, _HEIGHTS = (256, 0xA002), (257, 0xA003)  # in the first directory and in the EXIF directory
# A TIFF's tags on how pixels are stored mean nothing elsewhere; these describe the image.
_DESCRIBING = {270, 271, 272, 305, 306, 315, 316, 18246, 18249, 33432, _EXIF_IFD, _GPS_IFD}
_DESCRIBING |= set(range(40091, 40096))  # Windows' titles and comments
_XMP_TEXT = "XML:com.adobe.xmp"
_NO_TEXTS = re.compile(f"{_XMP_TEXT}|Raw profile type (exif|APP1|xmp|icc|icm)", re.IGNORECASE)


def carried(image: Image.Image, colours: bool) -> Info:
    """The metadata that a result keeps from its image, as ``info``, without the colour profile.

    Args:
        image: upright.
        colours: whether the result shows the image. A mask keeps only the resolution: where, when
            and by whom a photo was taken belongs to the photo.

    Returns:
        ``dpi``, ``exif``, ``xmp``, ``comment`` and ``texts``, as far as they exist.

    Example:
        >>> image = Image.new("RGB", (8, 8))
        >>> image.info["dpi"] = (300, 300)
        >>> carried(image, colours=False)
        {'dpi': (300.0, 300.0)}
    """
    found: Info = {"dpi": _resolution(image)}
    if colours:
        texts = {}
        if image.format == "PNG":
            texts = {k: v for k, v in image.info.items() if isinstance(v, str)}
        comment = image.info.get("comment") or texts.get("Comment")
        if isinstance(comment, str):
            comment = comment.encode()
        texts = {k: v for k, v in texts.items() if not _NO_TEXTS.fullmatch(str(k))}
        found |= {"exif": raw_exif(image), "xmp": raw_xmp(image)}
        found |= {"comment": comment, "texts": texts}
    return {name: value for name, value in found.items() if value}


def save(image: Image.Image, file: str | Path | BinaryIO, format: str, **options: Any) -> None:
    """``Image.save`` with all metadata that the format holds.

    Args:
        image: with the result of :func:`carried` as its ``info``.
        file: a path or an open file.
        format: Pillow's name of it.
        options: further options of Pillow.
    """
    info, size = image.info, image.size
    dpi, xmp = info.get("dpi"), upright_xmp(info.get("xmp"), size)
    exif = upright_exif(info.get("exif", b""), size)
    kept: dict[str, Any] = {"icc_profile": info.get("icc_profile"), "dpi": dpi, "xmp": xmp}
    if format in ("WEBP", "AVIF"):
        if dpi and not exif:  # these formats have no other place for the resolution
            exif = _resolution_exif(dpi)
        if format == "AVIF":  # Pillow would read it, and rewrite all of it
            exif = upright_exif(exif, size, keep_orientation=False)
    elif format == "JPEG":
        exif, kept["xmp"] = (part if len(part) < _MAX_SEGMENT else b"" for part in (exif, xmp))
        options["comment"] = info.get("comment", b"")[:_MAX_SEGMENT]
    elif format == "PNG":
        kept["pnginfo"] = _png_texts(info, xmp)
    elif format == "TIFF":
        try:
            content = _tiff(image, exif, xmp, dpi=dpi, **options)
        except (TypeError, ValueError, LookupError, RuntimeError, struct.error):  # corrupt values
            content = _tiff(image, b"", xmp, dpi=dpi, **options)
        if isinstance(file, (str, Path)):
            Path(file).write_bytes(content)
        else:
            file.write(content)
        return
    kept["exif"] = exif
    image.save(file, format, **options, **{name: value for name, value in kept.items() if value})


def raw_exif(image: Image.Image) -> bytes:
    """The EXIF data as in the file; empty if there is none or it is corrupt."""
    exif = image.info.get("exif")
    old = image.info.get("Raw profile type exif")  # PNG's form before it had a chunk for it
    try:
        if exif is None and isinstance(old, str):
            exif = bytes.fromhex("".join(old.split("\n")[3:]))
        elif exif is None and hasattr(image, "tag_v2"):
            exif = _describing(image.getexif()).tobytes()
    except Exception:  # Pillow raises nearly anything on corrupt data
        return b""
    return exif if isinstance(exif, bytes) and len(exif) > 14 else b""


def upright_exif(exif: bytes, size: tuple[int, int], keep_orientation: bool = True) -> bytes:
    """EXIF data for an upright image of this size, without an embedded thumbnail.

    Edited in place, so that all else stays as it was, including maker notes, whose offsets count
    from the beginning.

    Args:
        exif: as in a JPEG or a PNG.
        size: width and height in pixels.
        keep_orientation: False removes the tag; otherwise it becomes 1.

    Returns:
        With ``Exif`` and two zero bytes in front; empty if it is corrupt.
    """
    data = bytearray(exif)
    while data.startswith(b"Exif\0\0"):
        del data[:6]
    head = bytes(data[:4])
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[head]
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        tags = _directory(data, order, first)
        _remove_pictures(data, order, first, tags)
        if keep_orientation and _ORIENTATION in tags:
            _set(data, order, tags[_ORIENTATION], 1)
        inner: dict[int, int] = {}
        for tag in (_EXIF_IFD, _GPS_IFD):
            if tag in tags:
                (at,) = struct.unpack_from(f"{order}I", data, tags[tag] + 8)
                inner |= _directory(data, order, at)
        for place, tag in ((tags, 0), (inner, 1)):
            for number, value in zip((_WIDTHS[tag], _HEIGHTS[tag]), size, strict=True):
                if number in place:
                    _set(data, order, place[number], value)
        if not keep_orientation and _ORIENTATION in tags:
            _remove(data, order, first, tags[_ORIENTATION])
    except (KeyError, struct.error):
        return b""
    return b"Exif\0\0" + bytes(data) if data.startswith(head) else b""


def _directory(data: bytearray, order: str, at: int) -> dict[int, int]:
    """The tags of a directory, with the offset of each one's twelve bytes.

    Tags whose values lie outside the data are removed.
    """
    (count,) = struct.unpack_from(f"{order}H", data, at)
    end = at + 2 + 12 * count
    struct.unpack_from(f"{order}I", data, end)  # truncated, if this is outside
    kept = []
    for place in range(at + 2, end, 12):
        kind, number, value = struct.unpack_from(f"{order}HII", data, place + 2)
        length = _WIDTHS_OF_TYPES.get(kind, len(data)) * number
        if length <= 4 or value + length <= len(data):
            kept.append(data[place : place + 12])
    link = data[end : end + 4]
    entries = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + link
    data[at : end + 4] = entries.ljust(end + 4 - at, b"\0")
    places = range(at + 2, at + 2 + 12 * len(kept), 12)
    return {struct.unpack_from(f"{order}H", data, place)[0]: place for place in places}


def _set(data: bytearray, order: str, place: int, value: int) -> None:
    if value < 1 << 16:
        struct.pack_into(f"{order}HIHH", data, place + 2, 3, 1, value, 0)
    else:
        struct.pack_into(f"{order}HII", data, place + 2, 4, 1, value)


def _remove(data: bytearray, order: str, first: int, place: int) -> None:
    """Remove a tag from a directory; later ones move up."""
    (count,) = struct.unpack_from(f"{order}H", data, first)
    end = first + 2 + 12 * count + 4
    data[place : end - 12] = data[place + 12 : end]
    data[end - 12 : end] = bytes(12)
    struct.pack_into(f"{order}H", data, first, count - 1)


def _remove_pictures(data: bytearray, order: str, first: int, tags: dict[int, int]) -> None:
    """Zero embedded pictures, which show what a result leaves out, and unlink their directory."""
    link = first + 2 + 12 * struct.unpack_from(f"{order}H", data, first)[0]
    (second,) = struct.unpack_from(f"{order}I", data, link)
    struct.pack_into(f"{order}I", data, link, 0)
    others = {}
    if second:
        with suppress(struct.error):  # corrupt there: the rest is sound
            others = _directory(data, order, second)
    spans = [span for each in (tags, others) for span in _pictures(data, order, each)]
    begin = end = 0  # of the zeroed bytes: hostile spans overlap, and each byte is zeroed once
    for start, length in sorted(span for span in spans if span[0] < len(data)):
        if start > end:
            begin = end = start
        stop = min(start + length, len(data))
        if stop > end:
            data[end:stop] = bytes(stop - end)
            end = stop
    if end == len(data):
        del data[begin:]


def _pictures(data: bytearray, order: str, tags: dict[int, int]) -> Iterator[tuple[int, int]]:
    """The offsets and lengths of embedded pictures."""
    for start, length in _PICTURES:
        if start in tags and length in tags:
            places = _numbers(data, order, tags[start])
            yield from zip(places, _numbers(data, order, tags[length]), strict=False)
            struct.pack_into(f"{order}HII", data, tags[length] + 2, 4, 1, 0)


def _numbers(data: bytearray, order: str, place: int) -> tuple[int, ...]:
    """The integers of a tag."""
    kind, count = struct.unpack_from(f"{order}HI", data, place + 2)
    form, width = ("H", 2) if kind == 3 else ("I", 4)
    if count > len(data) // width:
        raise struct.error
    within = count * width <= 4
    at = place + 8 if within else struct.unpack_from(f"{order}I", data, place + 8)[0]
    return struct.unpack_from(f"{order}{count}{form}", data, at)


def raw_xmp(image: Image.Image) -> bytes:
    """The XMP data as in the file; empty if there is none."""
    xmp = image.info.get("xmp") or image.info.get(_XMP_TEXT) or b""
    xmp = xmp[0] if isinstance(xmp, tuple) else xmp
    return xmp.encode() if isinstance(xmp, str) else bytes(xmp)


def upright_xmp(xmp: bytes | None, size: tuple[int, int]) -> bytes:
    """XMP for an upright image of this size in pixels, without embedded pictures."""
    xmp = xmp or b""
    for tag in (b"xmp:Thumbnails", b"xap:Thumbnails"):
        # Up to the last end tag, each search finds one: after it, each would run to the end of the
        # text.
        head, end, tail = xmp.rpartition(b"</%b>" % tag)
        pattern = rb"<%b\b.*?</%b>" % (tag, tag)
        xmp = re.sub(pattern, b"", head + end, flags=re.DOTALL) + tail
    names = {b"tiff:Orientation": 1}
    names |= {b"tiff:ImageWidth": size[0], b"exif:PixelXDimension": size[0]}
    names |= {b"tiff:ImageLength": size[1], b"exif:PixelYDimension": size[1]}
    for name, value in names.items():
        pattern = rb"(\b" + name + rb"""\s*=\s*["']|<""" + name + rb"""\b[^<>]*>\s*)\d+"""
        xmp = re.sub(pattern, rb"\g<1>%d" % value, xmp)
    return xmp


def _resolution(image: Image.Image) -> tuple[float, float] | None:
    """Pixels per inch across and down."""
    found = image.info.get("dpi")
    try:
        if not found:
            exif = image.getexif()
            scale = 2.54 if exif.get(296) == 3 else 1
            found = [exif[tag] * scale for tag in (282, 283)]
        across, down = (round(float(value), 2) for value in found)  # PNG has 299.9994 for 300
    except Exception:  # the parser raises nearly anything on corrupt data
        return None
    sound = all(math.isfinite(value) and 0.5 <= value < 65535 for value in (across, down))
    return (across, down) if sound else None


def _resolution_exif(dpi: tuple[float, float]) -> bytes:
    exif = Image.Exif()
    exif[282], exif[283], exif[296] = *dpi, 2
    return exif.tobytes()


def _png_texts(info: dict[Any, Any], xmp: bytes) -> PngInfo | None:
    texts = dict(info.get("texts", {}))
    if comment := info.get("comment"):
        texts.setdefault("Comment", comment.decode(errors="replace").rstrip("\0"))
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text, zip=len(text) > 1000)
    if xmp:
        chunks.add_itxt(_XMP_TEXT, xmp.decode(errors="replace"))
    return chunks if chunks.chunks else None


def _tiff(image: Image.Image, exif: bytes, xmp: bytes, **options: Any) -> bytes:
    tags = Image.Exif()
    if exif:
        tags.load(exif)
    kept = _describing(tags)
    inner = {tag: kept.pop(tag) for tag in (_EXIF_IFD, _GPS_IFD) if tag in kept}
    directory = ImageFileDirectory_v2()
    for tag, value in {**kept, **({700: xmp} if xmp else {})}.items():
        directory[tag] = value
    buffer = io.BytesIO()
    icc_profile = image.info.get("icc_profile")
    options |= {"icc_profile": icc_profile} if icc_profile else {}
    image.save(buffer, "TIFF", tiffinfo=directory, **{k: v for k, v in options.items() if v})
    return _with_directories(buffer.getvalue(), inner)


def _with_directories(tiff: bytes, inner: dict[int, Any]) -> bytes:
    """Add these directories to a TIFF file: libtiff, which compresses the pixels, takes none."""
    if not inner:
        return tiff
    content = bytearray(tiff)
    order = "<" if content.startswith(b"II") else ">"
    (first,) = struct.unpack_from(f"{order}I", content, 4)
    places = _directory(content, order, first).values()
    entries = [bytes(content[place : place + 12]) for place in places]
    for tag, values in inner.items():
        directory = ImageFileDirectory_v2(bytes(content[:8]), group=tag)
        for number, value in values.items():
            if tag == _EXIF_IFD and isinstance(value, bytes):
                directory.tagtype[number] = _UNDEFINED  # Pillow's guess is a list of numbers
            directory[number] = value
        content += bytes(len(content) % 2)
        entries.append(struct.pack(f"{order}HHII", tag, 4, 1, len(content)))
        content += directory.tobytes(len(content))
    content += bytes(len(content) % 2)
    struct.pack_into(f"{order}I", content, 4, len(content))
    entries.sort(key=lambda entry: struct.unpack_from(f"{order}H", entry))
    return bytes(content) + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def _describing(exif: Image.Exif) -> Image.Exif:
    """The tags of a TIFF that describe the image."""
    kept = Image.Exif()
    for tag in _DESCRIBING & set(exif):
        if tag in (_EXIF_IFD, _GPS_IFD):
            inner = exif.get_ifd(tag)
            inner.pop(_INTEROP_IFD, None)  # it holds an offset
            kept[tag] = inner
        else:
            value: Any = exif[tag]
            # Pillow reads texts as Latin 1, and would write them as ASCII.
            kept[tag] = value.encode("latin-1", "replace") if isinstance(value, str) else value
    return kept
