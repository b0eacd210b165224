"""Odd and hostile files: their names, their bytes, and what has to come of each.

An outcome is the (width, height) of a mask, or words of the error that names the file.
"""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from helpers.data import add_alpha, make_palette_image, make_scene

WIDTH, HEIGHT = SIZE = (48, 40)
COLOUR, MASK = make_scene(7, *SIZE)
RGB = Image.fromarray(COLOUR)
GREY = RGB.convert("L")
RGBA = add_alpha(COLOUR, MASK)
UNKNOWN, TORN, LARGE = "not an image", "cannot be read", "refused, as it has more than"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 0x0112


def encoded(image, form, **options):
    """The bytes of an image or an array."""
    # A copy, as Pillow leaves settings of one format in the image that trip another.
    image = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def by_cv2(array, suffix):
    """What Pillow cannot write: colours of 16 bits or floats."""
    return cv2.imencode(suffix, array)[1].tobytes()


def chunk(kind, content):
    """Of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, content=b"", kind=0, depth=8):
    """A PNG file by hand; its header may promise what is not there."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def modes():
    """Every mode a format can hold."""
    wide = np.asarray(GREY).astype(np.uint16) * 257
    share = np.asarray(GREY, np.float32) / 255
    seen_through = make_palette_image([(255, 0, 0), (9, 7, 5)], MASK > 0, transparency=0)
    grey_alpha = add_alpha(np.asarray(GREY), MASK)
    for mode in ("1", "L", "P", "RGB"):
        for form in ("PNG", "BMP", "GIF", "TIFF"):
            yield f"{mode}.{form.lower()}", encoded(RGB.convert(mode), form), SIZE
    for form, image in {"JPEG": GREY, "WEBP": GREY, "AVIF": RGB, "PPM": RGB, "TGA": RGB}.items():
        yield f"plain-{form}.png", encoded(image, form), SIZE  # by content, not by name
    yield "jpeg2000.jpg", encoded(RGB, "JPEG2000"), SIZE
    yield "icon.png", encoded(RGB.resize((32, 32)), "ICO", sizes=[(32, 32)]), (32, 32)
    for form in ("PNG", "WEBP", "TIFF", "AVIF", "BMP"):
        yield f"RGBA.{form.lower()}", encoded(RGBA, form), SIZE
    yield "LA.png", encoded(grey_alpha, "PNG"), SIZE
    yield "LA.tif", encoded(grey_alpha, "TIFF"), SIZE
    yield "P-transparent.png", encoded(seen_through, "PNG"), seen_through.size
    yield "P-transparent.gif", encoded(seen_through, "GIF"), seen_through.size
    yield "L-transparent.png", encoded(GREY, "PNG", transparency=9), SIZE
    yield "RGB-transparent.png", encoded(RGB, "PNG", transparency=(1, 2, 3)), SIZE
    yield "I16.png", encoded(wide, "PNG"), SIZE
    yield "I16-transparent.png", encoded(wide, "PNG", transparency=257), SIZE
    yield "I16.tif", encoded(wide, "TIFF"), SIZE
    yield "I16B.tif", encoded(Image.fromarray(wide.astype(">u2")), "TIFF"), SIZE
    yield "I.tif", encoded(wide.astype(np.int32) * 30000, "TIFF"), SIZE
    yield "I-negative.tif", encoded(wide.astype(np.int32) * -1, "TIFF"), SIZE
    for name, floats in {
        "share": share,
        "levels": share * 255,
        "huge": share * 1e30,
        "negative": -share,
        "nan": share * np.nan,
        "half-nan": np.where(MASK > 0, share, np.nan).astype(np.float32),
        "inf": np.where(MASK > 0, share, np.inf).astype(np.float32),
    }.items():
        yield f"F-{name}.tif", encoded(floats, "TIFF"), SIZE
    deep = COLOUR.astype(np.uint16) * 257
    yield "RGB16.png", by_cv2(deep, ".png"), SIZE
    yield "RGBA16.png", by_cv2(np.dstack([deep, deep[..., 0]]), ".png"), SIZE
    yield "RGB16.tif", by_cv2(deep, ".tif"), SIZE
    yield "RGBF.tif", by_cv2(COLOUR.astype(np.float32) / 255, ".tif"), UNKNOWN
    yield "RGBF64.tif", by_cv2(COLOUR.astype(np.float64) / 255, ".tif"), UNKNOWN
    yield "CMYK.tif", encoded(RGB.convert("CMYK"), "TIFF"), SIZE
    # Pillow before 13 cannot read its own
    outcome = SIZE if int(Image.__version__.split(".")[0]) >= 13 else TORN
    yield "YCbCr.tif", encoded(RGB.convert("YCbCr"), "TIFF"), outcome
    lab = ImageCms.profileToProfile(
        RGB, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    yield "LAB.tif", encoded(lab, "TIFF"), SIZE
    yield "CMYK.jpg", encoded(RGB.convert("CMYK"), "JPEG"), SIZE
    yield "CMYK-profile.jpg", encoded(RGB.convert("CMYK"), "JPEG", icc_profile=PROFILE), SIZE


def variants():
    """Ways to write the same picture."""
    for quality in (1, 50, 100):
        yield f"q{quality}.jpg", encoded(RGB, "JPEG", quality=quality), SIZE
    for subsampling in (0, 1, 2):
        content = encoded(RGB, "JPEG", progressive=True, subsampling=subsampling)
        yield f"progressive{subsampling}.jpg", content, SIZE
    for way in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        yield f"{way}.tif", encoded(RGB, "TIFF", compression=way), SIZE
    yield "group4.tif", encoded(RGB.convert("1"), "TIFF", compression="group4"), SIZE
    yield "big.tif", encoded(RGB, "TIFF", big_tiff=True), SIZE
    yield "lossless.webp", encoded(RGBA, "WEBP", lossless=True), SIZE
    more = {"save_all": True, "append_images": [RGB.rotate(90), RGB.rotate(180)], "duration": 50}
    for form in ("GIF", "PNG", "WEBP", "AVIF"):
        yield f"animated.{form.lower()}", encoded(RGB, form, **more), SIZE
    yield "pages.tif", encoded(RGB, "TIFF", save_all=True, append_images=[GREY]), SIZE
    yield "two-views.jpg", encoded(RGB, "MPO", save_all=True, append_images=[RGB]), SIZE
    yield "interlaced.png", by_cv2(COLOUR, ".png"), SIZE
    sound = encoded(RGB, "PNG")
    yield "tail.png", sound + b"more" * 99, SIZE
    yield "tail.jpg", encoded(RGB, "JPEG") + b"\0" * 99, SIZE
    yield "no-end.png", sound[:-12], SIZE
    yield "wrong-sum.png", sound[:45] + b"\xff" + sound[46:], TORN
    yield "profile.jpg", encoded(RGB, "JPEG", icc_profile=PROFILE), SIZE
    yield "torn-profile.png", encoded(RGB, "PNG", icc_profile=PROFILE[:200]), SIZE
    yield "no-profile.webp", encoded(RGB, "WEBP", icc_profile=b"no profile at all"), SIZE
    yield "beyond-palette.png", png(3, 2, b"\0\1\2\3" * 2, kind=3), TORN
    yield "1-bit-by-hand.png", png(8, 2, b"\0\xaa" * 2, depth=1), (8, 2)


def turned():
    """Each EXIF orientation, and EXIF data that are none."""
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            size = SIZE if orientation < 5 else (HEIGHT, WIDTH)
            yield f"turned{orientation}.{form.lower()}", encoded(RGB, form, exif=exif), size
    for name, exif in {
        "0": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\0\0\0\0\0\0\0",
        "99": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x63\0\0\0\0\0\0",
        "text": b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\2\0\0\0\2left\0\0\0\0",
        "short": b"Exif\0\0MM\0*",
        "junk": b"Exif\0\0" + b"\xff" * 50,
        "circle": b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0",
    }.items():
        yield f"exif-{name}.jpg", encoded(RGB, "JPEG", exif=exif), SIZE


def sizes():
    """From one pixel to panoramas."""
    for width, height in [
        (1, 1), (1, 2), (2, 1), (3, 3), (31, 33), (1, 3000), (3000, 1), (3, 500), (500, 3),
        (9000, 60), (60, 9000),
    ]:  # fmt: skip
        yield (
            f"{width}x{height}.png",
            encoded(Image.new("RGB", (width, height)), "PNG"),
            (
                width,
                height,
            ),
        )
    yield "1x1.jpg", encoded(Image.new("L", (1, 1)), "JPEG"), (1, 1)
    yield "1x1.gif", encoded(Image.new("P", (1, 1)), "GIF"), (1, 1)
    yield "16383x1.webp", encoded(Image.new("RGB", (16383, 1)), "WEBP"), (16383, 1)
    yield "65535x1.jpg", encoded(Image.new("L", (65500, 1)), "JPEG"), (65500, 1)
    yield "black.png", encoded(Image.new("RGB", SIZE), "PNG"), SIZE
    yield "white.png", encoded(Image.new("RGB", SIZE, "white"), "PNG"), SIZE
    yield "clear.png", encoded(Image.new("RGBA", SIZE), "PNG"), SIZE


def torn():
    """Files that end too early. Formats that can be read from a part are read."""
    sound = {
        form: encoded(RGB.resize((96, 80)), form)
        for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
    }
    for form, content in sound.items():
        for share in (0.02, 0.3, 0.6, 0.95):
            cut = content[: max(1, int(len(content) * share))]
            yield f"torn{int(100 * share)}.{form.lower()}", cut, (TORN, UNKNOWN)
        yield f"head-{form}.jpg", content[:4], UNKNOWN
    for seed in range(12):
        form = list(sound)[seed % 7]
        changed = bytearray(sound[form])
        rng = np.random.default_rng(seed)
        for place in rng.integers(0, len(changed), 12):
            changed[place] ^= int(rng.integers(1, 256))
        yield f"flipped{seed}.{form.lower()}", bytes(changed), None


def no_pictures():
    """What only has a picture's name."""
    for name, content in {
        "empty": b"",
        "one-byte": b"\0",
        "zeros": b"\0" * 5000,
        "noise": np.random.default_rng(0).bytes(5000),
        "text": "Größe\n".encode("utf-16"),
        "html": b"<!doctype html><title>404</title>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "pdf": b"%PDF-1.7\n1 0 obj\n",
        "zip": b"PK\3\4" + b"\0" * 60,
        "program": b"\x7fELF\2\1\1" + b"\0" * 60,
        "script": b"#!/bin/sh\nexit 1\n",
        "video": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        "pickle": b"\x80\4\x95\0\0\0\0\0\0\0\0.",
        "postscript": b"%!PS-Adobe-3.0\nshowpage\n",
        "signature": b"\x89PNG\r\n\x1a\n",
        "soi": b"\xff\xd8\xff",
        "riff": b"RIFF\x04\0\0\0WEBP",
        "tiff-head": b"II*\0\x08\0\0\0",
        "gif-head": b"GIF89a",
    }.items():
        yield f"no-{name}.jpg", content, (UNKNOWN, TORN)
    yield "no-heic.heic", b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", (UNKNOWN, TORN, "pillow-heif")
    yield "no-width.png", png(0, 5), (UNKNOWN, TORN)


def bombs():
    """Small files that would take all memory."""
    yield "bomb.png", png(100_000, 100_000), LARGE
    yield "bomb-plain.png", png(40_000, 40_000, b"\0" * 1000), LARGE
    yield "bomb.gif", b"GIF89a\xff\xff\xff\xff\x80\0\0" + b"\0" * 6 + b"," + b"\0" * 20, LARGE
    jpeg = bytearray(encoded(RGB, "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = struct.pack(">HH", 65500, 65500)
    yield "bomb.jpg", bytes(jpeg), LARGE
    bmp = bytearray(encoded(RGB, "BMP"))
    bmp[18:26] = struct.pack("<ii", 90_000, 90_000)
    yield "bomb.bmp", bytes(bmp), LARGE
    tiff = bytearray(encoded(RGB, "TIFF"))
    for tag, length in ((256, WIDTH), (257, HEIGHT)):  # width, height
        place = tiff.index(struct.pack("<HHII", tag, 4, 1, length)) + 8
        tiff[place : place + 4] = struct.pack("<I", 90_000)
    yield "bomb.tif", bytes(tiff), LARGE
    yield "just-above.png", png(20_001, 10_000), LARGE
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a" * 80_000_000, zip=True)
    yield "bomb-text.png", encoded(RGB, "PNG", pnginfo=text), (TORN, UNKNOWN)


def names():
    """Names that shells, URLs and careless code trip over."""
    for name in (
        "with space.png", "größe.png", "图片.png", "🐎.png", "quote'\".png", "new\nline.png",
        "-dash.png", "a.b.c.png", "UPPER.PNG", "Mixed.JpG.png", "%20.png", "$(touch x).png",
        "~.png", "*.png", "[a].png", "name;rm.png", "tab\t.png", f"{'long' * 50}.png", "png.png",
    ):  # fmt: skip
        yield name, encoded(RGB, "PNG"), SIZE


def all_inputs():
    """(name, bytes, outcome) of each."""
    for group in (modes, variants, turned, sizes, torn, no_pictures, bombs, names):
        yield from group()
