"""Nothing that was removed, and nothing that an image hides, is in any result."""

import io

import numpy as np
import pytest
from helpers.data import make_scene
from PIL import Image

from src import Predictor, UserError
from src.pictures.formats import IMAGE_FORMATS
from src.pictures.matting import clear_hidden, fill_hidden
from src.pictures.render import MODES, Style, encode, render, render_with_box

RED, BLUE = (200, 30, 20), (10, 20, 220)
Y, X = np.mgrid[:60, :80]
FAR = np.hypot(Y - 30, X - 40)
SOFT = ((20 - FAR) / 8 + 0.5).clip(0, 1).astype(np.float32)
MAPS = {
    "soft": SOFT,
    "hard": (SOFT >= 0.5).astype(np.float32),
    "haze": np.maximum(SOFT, 0.0015),  # 0 in 8 bits
    "empty": np.zeros_like(SOFT),
    "faint": np.full_like(SOFT, 0.0015),
}


def scene(background, alpha=MAPS["hard"]):
    """A red disc before some colour, with noise."""
    noise = np.random.default_rng(0).integers(-10, 10, (60, 80, 3))
    pixels = alpha[..., None] * RED + (1 - alpha[..., None]) * background + noise
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def saved(result, suffix):
    file = io.BytesIO()
    encode(result, file, suffix)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [s for s in IMAGE_FORMATS if s not in (".jpg", ".jpeg")])
@pytest.mark.parametrize("flags", [{}, {"threshold": 0.5}, {"size": 40}, {"crop": True}])
@pytest.mark.parametrize("name", MAPS)
def test_no_background_under_alpha_0(name, flags, suffix):
    """What is removed has no influence there, and near the object its own colour goes on."""
    read = []
    for background in ((20, 180, 60), BLUE):
        soft = name in ("soft", "haze") and "threshold" not in flags
        image = scene(background, SOFT if soft else MAPS["hard"])
        result = render(image, MAPS[name], Style("cutout", **flags))
        read.append(np.array(Image.open(io.BytesIO(saved(result, suffix))).convert("RGBA"), int))
    hidden = read[0][..., 3] == 0
    assert np.array_equal(hidden, read[1][..., 3] == 0) and (hidden.any() or flags.get("crop"))
    colours = [image[hidden][:, :3] for image in read]
    lossy = 12 if suffix == ".avif" else 0
    difference = np.abs(colours[0] - colours[1])
    if soft and difference.size:  # colours next to it are estimated
        assert difference.mean() < (40 if flags.get("crop") else 12)  # a crop is all rim
    else:
        assert difference.max(initial=0) <= lossy
    for found in colours:
        near = found[found.max(1) > lossy]  # the others are black
        assert not near.size or np.abs(near.mean(0) - RED).max() < 50
        assert len(near) < 0.6 * hidden.sum() + 1 or flags.get("crop")
    assert not colours[0].size or name not in ("empty", "faint") or colours[0].max() <= lossy


def test_far_from_the_object_it_is_black():
    cutout = np.array(render(scene(BLUE), MAPS["hard"], Style("cutout")))
    assert not cutout[FAR > 24].any()
    rim = (cutout[..., 3] == 0) & (FAR < 21)
    assert rim.any() and np.abs(cutout[rim][:, :3].astype(int) - RED).max() < 20


def test_resized_with_colours_and_alpha_apart_no_fringe_appears():
    """As OpenCV and many a script do."""
    cutout = np.array(render(Image.new("RGB", (80, 60), RED), MAPS["hard"], Style("cutout")))
    small = cutout.reshape(30, 2, 40, 2, 4).mean((1, 3))
    seen = small[..., 3] > 0
    assert np.abs(small[seen][:, :3] - RED).max() < 1


def test_large_images_are_cleared_in_strips(monkeypatch):
    cutout = scene(BLUE)
    cutout.putalpha(Image.fromarray((SOFT * 255).astype(np.uint8)))
    whole = np.array(clear_hidden(cutout))
    monkeypatch.setattr("src.pictures.matting._STRIP", 80 * 7)
    assert np.array_equal(whole, clear_hidden(cutout))


def hiding(mode, seed):
    """An image that is in part transparent, and half so; under alpha 0 anything may be."""
    colours, _ = make_scene(3, 80, 60)
    alpha = np.clip((FAR - 8) * 30, 0, 255).astype(np.uint8)
    alpha[:, :25] = 0
    alpha[40:, 60:] = 120
    noise = np.random.default_rng(seed).integers(0, 255, colours.shape, np.uint8)
    colours = np.where(alpha[..., None] == 0, noise, colours)
    image = Image.fromarray(np.dstack([colours, alpha]))
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("name", ["soft", "hard"])
@pytest.mark.parametrize("kind", MODES)
def test_hidden_colours_have_no_influence(kind, name, mode):
    """On no byte of any result."""
    backgrounds = ["blur", (9, 200, 9)] if kind == "background" else ["white"]
    for background in backgrounds:
        for flags in (
            {}, {"refine": True}, {"crop": True, "margin": 3}, {"size": 30}, {"invert": True},
        ):  # fmt: skip
            style = Style(kind, background, **flags)
            results = [render(hiding(mode, seed), MAPS[name], style) for seed in (1, 2)]
            # Apart, so that a failure says whether the result or its encoder differs.
            assert results[0].info == results[1].info, style
            assert results[0].tobytes() == results[1].tobytes(), style
            for suffix in IMAGE_FORMATS:
                if kind != "cutout" or suffix not in (".jpg", ".jpeg"):
                    assert saved(results[0], suffix) == saved(results[1], suffix), (style, suffix)


def test_hidden_colours_are_not_for_the_network(weights):
    predictor = Predictor(weights, 64, amp="off")
    first, second = (predictor.map(hiding("RGBA", seed)) for seed in (1, 2))
    assert np.array_equal(first, second) and first.max() > 0


def test_hidden_palette_entries():
    """PNG's and GIF's way to be transparent."""
    results = []
    for hidden in ((255, 0, 255), (0, 255, 0)):
        image = Image.fromarray((SOFT > 0).astype(np.uint8)).convert("P")
        image.putpalette([*hidden, *RED])
        image.info["transparency"] = 0
        results += [saved(render(image, SOFT, Style(kind)), ".png") for kind in MODES]
    assert results[: len(MODES)] == results[len(MODES) :]


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_colours_that_are_times_alpha(mode):
    """Some TIFFs have them."""
    straight = hiding("RGBA" if mode == "RGBa" else "LA", 1)
    for kind in MODES:
        results = [render(im, SOFT, Style(kind)) for im in (straight, straight.convert(mode))]
        results = [r.convert("RGBa") if r.mode == "RGBA" else r for r in results]
        assert np.abs(np.subtract(*(np.array(r, int) for r in results))).max() <= 8, kind


def test_edges_take_in_no_hidden_colour():
    """Of a red disc in the clear, whose map is soft, all that is seen is red."""
    image = Image.new("RGBA", (80, 60), (0, 255, 0, 0))
    image.paste((*RED, 255), mask=Image.fromarray((SOFT > 0.3).astype(np.uint8) * 255))
    cutout = np.array(render(image, SOFT, Style("cutout")), int)
    assert np.abs(cutout[cutout[..., 3] > 0][:, :3] - RED).max() <= 8
    blurred = np.array(render(image, 1 - SOFT, Style("background", "blur")), int)
    assert np.abs(blurred - RED).max() <= 10


def test_another_background_fills_what_is_transparent():
    for background in ("white", "blur", Image.new("RGB", (9, 9), BLUE)):
        result = render(hiding("RGBA", 1), SOFT, Style("background", background))
        assert result.mode == "RGB" and result.size == (80, 60)


def test_an_image_that_hides_all():
    image = Image.new("RGBA", (30, 20), (*BLUE, 0))
    assert np.array(fill_hidden(image)).max() == 0
    whole = np.ones((20, 30), np.float32)
    assert not np.array(render(image, whole, Style("cutout"))).any()
    assert render_with_box(image, whole, Style("cutout"))[1] is None


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("level", [1.0, 0.4, 0.1, 0.05])
def test_crops_keep_faint_parts(kind, level):
    saliency = np.zeros((60, 80), np.float32)
    saliency[10:30, 20:40] = 1
    saliency[30:50, 20:40] = level
    saliency[0, 0] = 0.01  # haze
    found, box = render_with_box(scene(BLUE), saliency, Style(kind, crop=True))
    threshold = kind == "binary" and level < 0.5
    assert box == ((20, 10, 40, 30) if threshold else (20, 10, 40, 50))
    assert found.size == (box[2] - box[0], box[3] - box[1])
    whole = render(scene(BLUE), saliency, Style(kind))
    assert np.array_equal(found, whole.crop(box)) or kind == "cutout"


def test_crops_of_transparent_images_are_to_what_is_seen():
    image = Image.new("RGBA", (80, 60), (*RED, 0))
    image.paste((*RED, 255), (5, 5, 25, 35))
    saliency = np.zeros((60, 80), np.float32)
    saliency[20:50, 10:70] = 1
    assert render_with_box(image, saliency, Style("cutout"))[1] == (10, 20, 25, 35)
    assert render(image, saliency, Style(crop=True)).size == (15, 15)


@pytest.mark.parametrize(
    ("margin", "box"),
    [
        (0, (20, 10, 60, 30)),
        (4, (16, 6, 64, 34)),
        ("4px", (16, 6, 64, 34)),
        ("10%", (16, 6, 64, 34)),
        ("12.5 %", (15, 5, 65, 35)),
        (30, (0, 0, 80, 60)),
        ("1000%", (0, 0, 80, 60)),
    ],
)
def test_margins(margin, box):
    """Round the box, and within the image."""
    saliency = np.zeros((60, 80), np.float32)
    saliency[10:30, 20:60] = 1
    found, place = render_with_box(scene(BLUE), saliency, Style(crop=True, margin=margin))
    assert place == box and found.size == (box[2] - box[0], box[3] - box[1])
    nothing = render(scene(BLUE), np.zeros_like(saliency), Style(crop=True, margin=margin))
    assert nothing.size == (80, 60)


@pytest.mark.parametrize("margin", [-1, "x", "", "5em", "-3%", "nan", "1e3", "٣", True, "9" * 400])
def test_margins_that_are_none(margin):
    with pytest.raises(UserError, match=r"^margin( .*)?: choose pixels"):
        Style(margin=margin)
