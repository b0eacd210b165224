"""What is made of picture and map; colours of cut-outs against known ones."""

import io
from pathlib import Path

import numpy as np
import pytest
from helpers.data import make_scene
from PIL import Image, ImageCms

from src import UserError
from src.pictures.formats import IMAGE_FORMATS
from src.pictures.layers import parse_background, to_layers
from src.pictures.matting import foreground, refine
from src.pictures.render import Style, encode, render

RED, GREEN = (200, 30, 20), (20, 180, 60)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def disc(height=60, width=80, soft=8.0):
    """A soft disc, float32 in [0, 1]."""
    y, x = np.mgrid[:height, :width]
    far = np.hypot(y - height / 2, x - width / 2)
    return ((height / 3 - far) / soft + 0.5).clip(0, 1).astype(np.float32)


def mixed(alpha, near=RED, behind=GREEN):
    """One colour before another."""
    weight = alpha[..., None]
    return Image.fromarray((weight * near + (1 - weight) * behind).round().astype(np.uint8))


def test_modes():
    alpha = disc()
    picture = mixed(alpha)
    mask = render(picture, alpha, Style())
    assert mask.mode == "L" and np.array_equal(mask, (alpha * 255).round())
    binary = render(picture, alpha, Style("binary"))
    assert np.array_equal(binary, np.where(alpha >= 0.5, 255, 0))
    strict = render(picture, alpha, Style("mask", threshold=0.9))
    assert np.array_equal(strict, np.where(alpha >= 0.9, 255, 0))
    assert np.array_equal(
        render(picture, alpha, Style("binary", invert=True)), 255 - np.array(binary)
    )
    overlay = np.array(render(picture, alpha, Style("overlay")))
    assert np.array_equal(overlay[alpha == 0], np.array(picture)[alpha == 0])
    assert np.abs(overlay[alpha == 1] - (np.array([200 + 255, 30, 20 + 64]) / 2)).max() <= 1


def test_cutout_has_the_colour_of_the_object_alone():
    """Half transparent pixels show red and green mixed; in the cut-out, they are red."""
    alpha = disc()
    cutout = np.array(render(mixed(alpha), alpha, Style("cutout")))
    assert np.array_equal(cutout[..., 3], (alpha * 255).round())
    edge = (alpha > 0.1) & (alpha < 1)
    off = np.abs(cutout[edge, :3] - np.array(RED, float))
    assert off.max() < 20 and off.mean() < 8
    before = np.abs(np.array(mixed(alpha))[edge] - np.array(RED, float)).max()
    assert before > 120  # which is what would shine through without


def test_other_backgrounds():
    alpha = disc()
    picture = mixed(alpha)
    blue = np.array(render(picture, alpha, Style("background", (0, 0, 255))), float)
    expected = alpha[..., None] * RED + (1 - alpha[..., None]) * np.array([0, 0, 255])
    assert np.abs(blue - expected).max() < 12
    blurred = np.array(render(picture, alpha, Style("background", "blur")), float)
    assert np.abs(blurred[alpha == 0] - GREEN).max() <= 16  # next to no red shines out
    other = Image.new("RGB", (300, 20), (9, 8, 7))
    replaced = np.array(render(picture, alpha, Style("background", other)))
    assert (replaced[alpha == 0] == (9, 8, 7)).all()


def test_an_empty_scene_stays_empty():
    nothing = np.full((20, 30), 0.001, np.float32)
    picture = Image.fromarray(make_scene(0, 30, 20)[0])
    for refined in (False, True):
        assert np.array(render(picture, nothing, Style(refine=refined))).max() == 0
    cutout = render(picture, nothing, Style("cutout", crop=True))
    assert cutout.size == (30, 20) and np.array(cutout.getchannel("A")).max() == 0


def test_crop_and_size():
    alpha = np.zeros((40, 60), np.float32)
    alpha[10:20, 30:50] = 1
    picture = Image.new("RGB", (60, 40))
    assert render(picture, alpha, Style("cutout", crop=True)).size == (20, 10)
    assert render(picture, alpha, Style("cutout", crop=True, size=10)).size == (10, 5)
    assert render(picture, alpha, Style("mask", size=30)).size == (30, 20)
    assert render(picture, alpha, Style("mask", size=300)).size == (60, 40)


def test_what_was_transparent_stays_so():
    picture = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    picture.putpixel((1, 0), (200, 0, 0, 0))
    everything = np.ones((1, 2), np.float32)
    cutout = render(picture, everything, Style("cutout"))
    assert [cutout.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0, 255), (200, 0, 0, 0)]
    assert render(picture, everything, Style("overlay")).getpixel((1, 0))[3] == 0
    ground = render(picture, everything, Style("background", (0, 0, 9)))
    assert ground.getpixel((1, 0)) == (0, 0, 9)


def linear_grey():
    """A colour profile of grey as light is counted, by the ICC's format (ICC.1:2001-04)."""
    tags = {
        b"desc": b"desc" + bytes(4) + (5).to_bytes(4, "big") + b"grey\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + bytes.fromhex("0000f6d6000100000000d32d"),
        b"kTRC": b"curv" + bytes(8),  # no points: as it is
    }
    table, data = len(tags).to_bytes(4, "big"), b""
    for name, tag in tags.items():
        data += bytes(-len(data) % 4)
        place = 128 + 4 + 12 * len(tags) + len(data)
        table += name + place.to_bytes(4, "big") + len(tag).to_bytes(4, "big")
        data += tag
    size = 128 + len(table) + len(data)
    head = size.to_bytes(4, "big") + bytes(4) + bytes.fromhex("02100000") + b"mntrGRAYXYZ "
    head += bytes(12) + b"acsp" + bytes(28) + bytes.fromhex("0000f6d6000100000000d32d")
    return head + bytes(128 - len(head)) + table + data


def test_profiles():
    """One that fits stays; those of other colours are applied or left out."""
    assert to_layers(Image.new("RGB", (2, 2)))[1:] == (None, None)
    for mode in ("RGB", "L", "P"):
        picture = Image.new(mode, (2, 2))
        picture.info["icc_profile"] = SRGB
        rgb, _, profile = to_layers(picture)
        assert rgb.mode == "RGB" and profile == SRGB
        result = render(picture, np.ones((2, 2), np.float32), Style("cutout"))
        file = io.BytesIO()
        encode(result, file, ".png")
        assert Image.open(file).info["icc_profile"] == SRGB
        mask = render(picture, np.ones((2, 2), np.float32), Style())
        assert "icc_profile" not in mask.info
    grey = Image.new("L", (2, 2), 128)
    grey.info["icc_profile"] = linear_grey()
    assert to_layers(grey)[0].getpixel((0, 0)) == (188, 188, 188)
    with_alpha = grey.convert("LA")
    with_alpha.info = dict(grey.info)
    assert to_layers(with_alpha)[0].getpixel((0, 0))[:3] == (188, 188, 188)
    cmyk = Image.new("CMYK", (2, 2), (0, 255, 255, 0))
    for torn in (SRGB, SRGB[:90], b"no profile"):
        cmyk.info["icc_profile"] = torn
        rgb, *_ = to_layers(cmyk)
        assert rgb.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("suffix", IMAGE_FORMATS)
@pytest.mark.parametrize("mode", ["mask", "cutout"])
def test_formats_keep_what_was_made(suffix, mode):
    alpha = disc(soft=20)
    result = render(mixed(alpha), alpha, Style(mode))
    file = io.BytesIO()
    encode(result, file, suffix)
    read = Image.open(file)
    if suffix in (".jpg", ".jpeg"):
        white = Image.new("RGB", result.size, "white")
        if mode == "cutout":
            white.paste(result, mask=result.getchannel("A"))
            result = white
    lossy = suffix in (".jpg", ".jpeg", ".avif")
    difference = np.abs(np.array(read.convert(result.mode), float) - np.array(result, float))
    seen = difference[alpha > 0.05] if mode == "cutout" else difference
    assert seen.mean() <= (2 if lossy else 0)


@pytest.mark.parametrize(("width", "name"), [(17000, "WEBP"), (70000, "JPEG"), (70000, "AVIF")])
def test_too_large_for_a_format(width, name):
    with pytest.raises(UserError, match=f"{width}×2 cannot be written as {name}"):
        encode(Image.new("L", (width, 2)), io.BytesIO(), f".{name.lower()}")


def strands(height=120, width=160):
    """Thin slanted lines out of a block: alpha in 256 steps, drawn large and shrunk."""
    y, x = np.mgrid[: height * 4, : width * 4] / 4
    lines = (np.abs((y + 0.4 * x) % 10 - 5) < 0.6) & (x > 50) & (x < 110)
    large = ((x <= 50) & (x > 15) | lines).astype(np.float32)
    return large.reshape(height, 4, width, 4).mean((1, 3))


def by_pymatting(name):
    """What pymatting 1.1.16, which compiles for a minute, made of the images of two tests: alpha by
    estimate_alpha_cf, unknown where the coarse map is between 0.03 and 0.97, and foreground by
    estimate_foreground_ml.
    """
    return np.load(Path(__file__).with_name("pymatting.npz"))[name] / 255


def test_colours_of_strands_beat_pymatting():
    """Textures before textures with a known alpha; mean error of what is seen of the object."""
    alpha = strands()
    rng = np.random.default_rng(0)
    textures = [
        np.array(Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((160, 120), 3))
        for _ in range(2)
    ]
    near, behind = (texture / 255 for texture in textures)
    seen = alpha[..., None] * near + (1 - alpha[..., None]) * behind
    picture = Image.fromarray((seen * 255).round().astype(np.uint8))
    ours = np.array(foreground(picture, alpha)) / 255
    theirs = by_pymatting("foreground")
    part = (alpha > 0) & (alpha < 1)
    errors = [
        np.abs(alpha[..., None] * (found - near))[part].mean() for found in (ours, theirs, seen)
    ]
    assert errors[0] < errors[1] < errors[2]


def test_refined_edges_are_the_pictures():
    """Strands lost in a map of a quarter of the size come back, better than by matting."""
    true = strands(360, 480).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 4, (*true.shape, 3))
    picture = np.array(mixed(true), float) + noise
    picture = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    coarse = Image.fromarray(true).resize((160, 120), Image.Resampling.BOX).resize((480, 360), 2)
    coarse = np.array(coarse).clip(0, 1)
    refined = refine(picture, coarse)
    assert refined.dtype == np.float32 and refined.min() >= 0 and refined.max() <= 1
    theirs = by_pymatting("alpha")
    errors = [np.abs(found - true).mean() for found in (refined, theirs, coarse)]
    assert errors[0] < min(errors[1], 0.5 * errors[2]), errors


@pytest.mark.parametrize("dark", ["object", "ground"])
def test_refined_ground_stays_empty(dark):
    """Blades before which a smooth object stands are no part of it, its own spots no holes."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:480, :640]
    away = np.hypot(y - 240, x - 320) - 150  # pixels outside
    true = (0.5 - away).clip(0, 1)
    shape = (120, 320), (240, 160)
    blades, spots = (
        np.asarray(Image.fromarray(rng.random(size, np.float32)).resize((640, 480), 2))
        for size in shape
    )
    layers = [0.1 + 0.2 * spots, 0.2 + 0.7 * blades]
    object_, ground = layers if dark == "object" else layers[::-1]
    grey = 255 * (true * object_ + (1 - true) * ground)
    image = Image.fromarray((grey[..., None] * (0.9, 1, 0.5)).round().astype(np.uint8))
    seen = (0.5 - 0.5 * np.tanh(away / 2.4)).astype(np.float32)  # as soft as a map of 320² is
    refined = refine(image, seen)
    # Where colours count alike everywhere, specks are up to .58, and .0004 and .0008 on average.
    assert refined[away > 7].max() < 0.12 and refined[away > 7].mean() < 1e-4, "specks"
    assert refined[away < -7].min() > 0.97, "holes"  # .91 there
    assert np.abs(refined - true).mean() < 0.8 * np.abs(seen - true).mean()


def test_strips_are_not_seen(monkeypatch):
    """Large pictures are worked on in strips of rows; the result is that of the whole."""
    alpha = disc(200, 90, soft=30)
    noise = np.random.default_rng(1).normal(0, 20, (200, 90, 3))
    picture = Image.fromarray((np.array(mixed(alpha)) + noise).clip(0, 255).astype(np.uint8))
    whole = [np.array(foreground(picture, alpha), int), refine(picture, alpha)]
    monkeypatch.setattr("src.pictures.matting._STRIP", 90 * 23)
    parts = [np.array(foreground(picture, alpha), int), refine(picture, alpha)]
    assert np.abs(whole[0] - parts[0])[alpha > 0].max() <= 1
    assert np.abs(whole[1] - parts[1]).max() < 0.01


def test_backgrounds_by_name():
    assert parse_background("#102030") == (16, 32, 48) and parse_background("blur") == "blur"
    with pytest.raises(UserError, match=r"^background no such colour: "):
        parse_background("no such colour")
    assert parse_background("#102030ff") == (16, 32, 48)
    for seen_through in ("#10203080", "rgba(1, 2, 3, 0)"):
        with pytest.raises(UserError, match="a background is opaque"):
            parse_background(seen_through)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "magic"},
        {"threshold": 1.1},
        {"size": 0},
        {"size": 0.5},
        {"background": 255},
        {"background": (1, 2)},
        {"background": (255, 0, 0, 128)},
        {"background": (300, -5, 0)},
        {"threshold": "0.5"},
        {"crop": "no"},
        {"size": True},
        {"margin": -1},
    ],
)
def test_styles_that_are_none(wrong):
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} "):
        Style(**wrong)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (np.ones((30, 40), np.uint8), "array of floats from 0 to 1, got uint8"),
        ([[1.0]], "got list"),
        (None, "got NoneType"),
        (np.ones((40, 30), np.float32), "expected 30×40, as the image, got 40×30"),
        (np.ones((30, 40, 1), np.float32), "got 30×40×1"),
        (np.full((30, 40), 255, np.float32), "values from 0 to 1"),
        (np.full((30, 40), np.nan, np.float32), "values from 0 to 1"),
        (np.ones((0, 30, 40), np.float32), "got 0×30×40"),
    ],
)
def test_maps_that_are_none(wrong, named):
    with pytest.raises(UserError, match=f"^saliency: .*{named}"):
        render(Image.new("RGB", (40, 30)), wrong, Style())


def test_colours_of_any_sequence():
    image, empty = Image.new("RGB", (40, 30), "blue"), np.zeros((30, 40), np.float32)
    for red in ([255, 0, 0], np.array([255, 0, 0]), (255, 0, 0), "red"):
        assert render(image, empty, Style("background", red)).getpixel((0, 0)) == (255, 0, 0)
    assert render(image, empty, Style(size=np.int64(20))).size == (20, 15)


def test_maps_of_any_order():
    """Mirrored, of the other byte order, or read-only: as they are otherwise."""
    image, saliency = make_scene(3)
    image, saliency = Image.fromarray(image), np.float32(saliency > 0) * 0.9
    style = Style("cutout", refine=True)
    expected = np.asarray(render(image, saliency, style))
    turned = saliency[:, ::-1].copy()[:, ::-1]
    locked = saliency.copy()
    locked.flags.writeable = False
    for same in (turned, saliency.astype(">f4"), locked, saliency.astype(np.float64)):
        assert np.array_equal(np.asarray(render(image, same, style)), expected)
