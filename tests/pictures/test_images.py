"""Pictures that need more than Pillow, or another way of reading."""

import builtins
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from helpers.data import ROOT, make_scene
from PIL import Image

from src import UserError
from src.inference.preprocess import resize_input
from src.pictures.formats import DECODERS, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from src.pictures.images import (
    count_frames,
    open_image,
    oriented_size,
    to_8_bits,
    to_grey,
    to_rgb,
)

PICTURE = Image.fromarray(make_scene(3, 64, 48)[0]).resize((128, 96))


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic(tmp_path, orientation):
    """As telephones write it; the plug-in turns it, and nobody turns it again."""
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = heif.from_pillow(PICTURE)
    file.save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
    upright = PICTURE if orientation == 1 else PICTURE.transpose(Image.Transpose.ROTATE_270)
    found = open_image(tmp_path / "a.heic")
    assert found.size == upright.size == oriented_size(tmp_path / "a.heic")
    assert np.abs(np.array(to_rgb(found), float) - np.array(upright)).mean() < 8


def test_heic_without_the_plug_in(tmp_path, monkeypatch):
    """Says what to install."""
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + b"\0" * 40)
    monkeypatch.setattr(Image, "open", _knows_no_heif)
    real = builtins.__import__

    def without(name, *args):
        if name == "pillow_heif":
            raise ImportError(name=name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"a\.heic: HEIC needs pillow-heif: pip install"):
        open_image(tmp_path / "a.heic")


def _knows_no_heif(file, formats):
    raise Image.UnidentifiedImageError


def test_only_formats_of_pictures(tmp_path):
    """Whatever a file is called: Pillow starts Ghostscript for an EPS."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    (tmp_path / "a.jpg").write_bytes(eps)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "EPS"
    with pytest.raises(UserError, match=r"a\.jpg: not an image in a known format"):
        open_image(tmp_path / "a.jpg")
    for suffix in ("jpeg", "png", "webp", "tiff", "bmp", "gif", "ppm", "avif", "jp2"):
        PICTURE.save(tmp_path / f"b.{suffix}")
        assert open_image(tmp_path / f"b.{suffix}").size == PICTURE.size


def test_16_bit_grey_with_a_level_to_see_through():
    """PNG's tRNS of a 16-bit picture; Pillow alone cannot convert it."""
    picture = Image.fromarray(np.array([[0, 300], [65535, 300]], np.uint16))
    picture.info["transparency"] = 300
    found = to_8_bits(picture)
    assert found.mode == "LA"
    assert np.array_equal(np.array(found), [[[0, 255], [1, 0]], [[255, 255], [1, 0]]])
    assert to_rgb(picture).getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 200.0], [0, 100, 200]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([-5.0, np.nan, np.inf], [0, 0, 0]),
        ([0.25, 1.0, -np.inf], [64, 255, 0]),
    ],
)
def test_floats(values, expected):
    picture = Image.fromarray(np.array([values], np.float32))
    assert np.array(to_8_bits(picture)).tolist() == [expected]


@pytest.mark.parametrize("height, width", [(1, 9), (96, 96), (40, 320), (211, 137), (33, 2000)])
def test_resized_as_torchvision_does(height, width):
    """To the bit, in either memory order."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    for picture in (pixels.permute(2, 0, 1), pixels.permute(2, 0, 1).contiguous()):
        assert torch.equal(resize_input(picture, 96), TF.resize(picture, [96, 96], antialias=True))


def test_what_pillow_decodes_is_a_picture(tmp_path):
    """In a folder too; not what it knows by name alone, nor videos and programs."""
    suffixes = "jfif jpg jpe jp2 ppm pgm tga dib pcx sgi ico icns qoi dds apng"
    for suffix in suffixes.split():
        assert f".{suffix}" in IMAGE_SUFFIXES
        PICTURE.save(tmp_path / f"b.{suffix}", sizes=[(64, 48)] if suffix == "ico" else None)
        assert open_image(tmp_path / f"b.{suffix}").width >= 64
    assert not {".pdf", ".eps", ".ps", ".h5", ".hdf", ".mpg", ".wmf", ".txt"} & IMAGE_SUFFIXES
    assert not {"EPS", "HDF5", "MPEG", "WMF"} & {*DECODERS}
    assert not IMAGE_SUFFIXES & VIDEO_SUFFIXES
    assert {".ts", ".mpg", ".wmv", ".3gp", ".mp4"} <= VIDEO_SUFFIXES


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png", "avif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_frames_are_counted(tmp_path, suffix, orientation):
    """Of pictures that are turned too."""
    others = [PICTURE.rotate(90 * i) for i in (1, 2)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = suffix not in ("gif", "avif")  # Pillow crashes where it writes frames of such an AVIF
    options = {"exif": exif} if turned else {}
    path = tmp_path / f"a.{suffix}"
    PICTURE.save(path, save_all=True, append_images=others, **options)
    found = open_image(path)
    assert count_frames(found) == 3
    if suffix in ("webp", "tiff"):
        assert (found.height > found.width) == (orientation == 6)


READ_SIZE = """
import sys
from src.pictures.images import oriented_size
from train_utils.cli import run
run(lambda: print(oriented_size(sys.argv[1])))
"""


@pytest.mark.parametrize(("width", "words"), [(10_000, "(10000, 15000)"), (13_334, "200 million")])
def test_one_limit_everywhere(tmp_path, width, words):
    """Of every script: 200 million pixels, without Pillow's own warning from 89.5 million on."""
    Image.new("1", (width, 15_000)).save(tmp_path / "large.png")
    done = subprocess.run(
        [sys.executable, "-c", READ_SIZE, tmp_path / "large.png"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    refused = f"error: {tmp_path}/large.png: refused, as it has more than 200 million pixels; "
    assert done.stderr == (f"{refused}shrink it\n" if width > 13_333 else "")
    assert words in done.stdout + done.stderr


def test_the_library_leaves_a_program_its_limit():
    """And its warnings: nothing but a script changes them."""
    script = "import warnings; from PIL import Image; import src, src.pictures.images; "
    script += "print(Image.MAX_IMAGE_PIXELS, [f[2].__name__ for f in warnings.filters])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith(f"{1024**3 // 4 // 3} "), done.stderr
    assert "DecompressionBombWarning" not in done.stdout


def test_maps_become_grey_in_strips():
    """As all at once: rounded, halves to even."""
    saliency = np.random.default_rng(0).random((600, 30), np.float32)
    saliency[299] = np.arange(30) / 510
    whole = (saliency * 255).round().astype(np.uint8)
    assert np.array_equal(to_grey(saliency), whole)
    assert np.array_equal(to_grey(saliency[::-1, ::2]), whole[::-1, ::2])
    assert to_grey(np.zeros((1, 1))).getpixel((0, 0)) == 0
