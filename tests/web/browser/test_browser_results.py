"""Results of the page that computes in the browser, in Chromium without a screen."""

import numpy as np
import pytest
from browsing import choose_mask, compute, download, make_photos, open_page
from helpers.data import ROOT, make_scene, save_image
from PIL import Image

import predict
from src import Predictor, Style, render
from src.pictures.images import open_image


def test_masks_are_those_of_predict(built, browser, address, call, tmp_path):
    """To 2 of 255 levels, of images turned, transparent, smaller than the network's and grey; and
    nothing but the page's own files is asked for."""
    photos = make_photos(tmp_path / "photos")
    argv = [tmp_path / "photos", "--output", tmp_path / "masks", "--amp", "off", "--device", "cpu"]
    assert call(predict.main, *argv)[0] == 0
    context = browser.new_context()
    asked = []
    context.on("request", lambda request: asked.append((request.method, request.url)))
    page = context.new_page()
    open_page(page, address)
    choose_mask(page)
    compute(page, photos)
    for photo in photos:
        found = download(page, photo.name, tmp_path)
        expected = open_image(tmp_path / f"masks/{photo.stem}.png")
        assert (found.mode, found.size) == ("L", expected.size)
        difference = np.abs(np.asarray(found, int) - np.asarray(expected, int))
        assert difference.max() <= 2 and np.asarray(expected).std() > 10, photo.name
    context.close()
    files = {path.relative_to(built[0]).as_posix() for path in built[0].rglob("*")} | {""}
    for method, url in asked:
        own = url.startswith(address) and url[len(address) :].split("?")[0] in files
        assert method == "GET" and (own or url.startswith("blob:")), url
    assert len(asked) > 10


def test_cutouts_have_the_objects_own_colours(page, tmp_path):
    """As the library's, with edges refined, to the rounding of what is estimated at small size."""
    make_photos(tmp_path / "photos")
    clear, turned = (tmp_path / "photos" / name for name in ("clear.png", "turned.jpg"))
    compute(page, [clear, turned])
    predictor = Predictor(ROOT / "weights/u2net_lite.safetensors", device="cpu", amp="off")
    for photo in (clear, turned):
        image = open_image(photo)
        style = Style("cutout", refine=True)
        expected = np.asarray(render(image, predictor.map(image), style), int)
        found = np.asarray(download(page, photo.name, tmp_path), int)
        assert found.shape == expected.shape
        alpha = np.abs(found - expected)[..., 3]
        assert alpha.mean() < 0.2 and np.quantile(alpha, 0.999) <= 6
        seen = np.minimum(found, expected)[..., 3] > 32
        colours = np.abs(found - expected)[..., :3][seen]
        original = np.abs(np.asarray(image.convert("RGB"), int) - expected[..., :3])[seen]
        assert np.quantile(colours, 0.99) <= 3 < np.quantile(original, 0.99)
        left = [one[one[..., 3] == 0][:, :3].any(-1).mean() for one in (found, expected)]
        assert abs(left[0] - left[1]) < 0.02 and left[0] < 0.5  # no old background under alpha 0


@pytest.mark.parametrize("behind", ["Colour", "Blur"])
def test_backgrounds(page, tmp_path, behind):
    """A colour, or the image's own background blurred, as the library's to its rounding."""
    photo = next(path for path in make_photos(tmp_path / "photos") if path.name == "turned.jpg")
    page.get_by_label("Background", exact=True).check()
    page.get_by_label(behind, exact=True).check()
    compute(page, [photo])
    found = np.asarray(download(page, photo.name, tmp_path), int)
    predictor = Predictor(ROOT / "weights/u2net_lite.safetensors", device="cpu", amp="off")
    image = open_image(photo)
    background = "#30a030" if behind == "Colour" else "blur"
    style = Style("background", background, refine=True)
    expected = np.asarray(render(image, predictor.map(image), style), int)
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert difference.mean() < 1 and np.quantile(difference, 0.99) <= 4


@pytest.mark.parametrize("size", [(66_000, 20), (8, 66_000)])
def test_long_sides(page, tmp_path, size):
    """Longer than a canvas may be."""
    image = Image.fromarray(make_scene(1, 300, 200)[0]).resize(size)
    path = save_image(tmp_path / "long.png", image)
    choose_mask(page)
    compute(page, [path])
    predictor = Predictor(ROOT / "weights/u2net_lite.safetensors", device="cpu", amp="off")
    expected = np.asarray(render(image, predictor.map(image), Style()), int)
    found = np.asarray(download(page, "long.png", tmp_path), int)
    assert np.abs(found - expected).max() <= 2 and expected.std() > 10


def test_fifty_megapixels(page, tmp_path):
    """At full size, through small canvases."""
    large = Image.fromarray(make_scene(0, 866, 578)[0]).resize((8660, 5780))
    path = save_image(tmp_path / "large.jpg", large, quality=60)
    choose_mask(page)
    assert "8660 × 5780" in compute(page, [path])[0]
    mask = download(page, "large.jpg", tmp_path)
    assert (mask.size, mask.mode) == ((8660, 5780), "L")
