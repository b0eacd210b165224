"""The page in a browser without a screen."""

import io

import numpy as np
import pytest
from helpers.data import make_scene, save_image, truncate_file
from helpers.processes import PATIENCE
from PIL import Image

from src import Predictor
from src.pictures.images import open_image
from src.pictures.render import Style, render


@pytest.fixture
def page(server, browser):
    page = browser.new_page()
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(server.url)
    page.get_by_role("button", name="Predict").wait_for()
    yield page
    page.close()


def test_a_real_upload(server, page, tmp_path):
    """The pixels of the page's result are those of the library."""
    paths = [
        save_image(tmp_path / f"photo{seed}.png", make_scene(seed, 90, 70)[0]) for seed in range(2)
    ]
    page.locator("input[type=file]").first.set_input_files(paths)
    page.get_by_text("photo1").wait_for()
    page.get_by_role("button", name="Predict").click()
    shown = page.locator("button[aria-label^=Thumbnail] img")
    shown.nth(1).wait_for()
    predictor = Predictor(server.weights, 64, "cpu", "off")
    for i, path in enumerate(paths):
        body = page.request.get(shown.nth(i).get_attribute("src")).body()
        picture = Image.open(path)
        expected = render(picture, predictor.map(picture), Style("cutout", refine=True))
        found = Image.open(io.BytesIO(body))
        assert (found.format, found.mode) == ("PNG", "RGBA") and np.array_equal(found, expected)


def test_a_binary_mask_of_the_first_frame(server, page, tmp_path):
    """It follows the threshold; its name is the upload's, and what is shrunk is not to be had."""
    scenes = [Image.fromarray(make_scene(seed, 90, 70)[0]) for seed in range(2)]
    path = tmp_path / "moving.gif"
    save_image(path, scenes[0], save_all=True, append_images=scenes[1:])
    image = open_image(path)
    saliency = Predictor(server.weights, 64, "cpu", "off").map(image)
    threshold = f"{np.median(saliency):.2f}"
    slider = page.get_by_role("spinbutton", name="Threshold")
    assert not slider.is_visible()
    page.get_by_label("binary").check()
    slider.fill(threshold)
    slider.press("Enter")
    assert not page.get_by_label("Hard edge").is_visible()
    page.locator("input[type=file]").first.set_input_files(path)
    page.get_by_text("moving").first.wait_for()
    page.get_by_role("button", name="Predict").click()
    page.get_by_text("moving.gif: only the first of its 2 images was used").wait_for()
    shown = page.locator("button[aria-label^=Thumbnail] img")
    shown.wait_for()
    assert page.get_by_label("Download", exact=True).count() == 0  # before one is chosen
    shown.click()
    assert page.get_by_label("Share").count() == 0
    with page.expect_download() as started:
        page.get_by_label("Download", exact=True).click()
    assert started.value.suggested_filename == "moving-binary.png"
    started.value.save_as(tmp_path / "found.png")
    style = Style("binary", threshold=float(threshold), refine=True)
    expected = render(image, saliency, style)
    found = np.asarray(Image.open(tmp_path / "found.png"))
    assert np.array_equal(found, expected) and 0 < found.mean() < 255


def test_uploads_that_are_no_use(server, page, tmp_path):
    """A large and a torn one: each is named, with what is wrong."""
    large = tmp_path / "large.jpg"
    large.write_bytes(b"0" * 1_500_000)
    page.locator("input[type=file]").first.set_input_files(large)
    page.get_by_text("exceed the maximum allowed size").wait_for()
    torn = truncate_file(save_image(tmp_path / "torn.jpg", make_scene(0, 200, 200)[0]))
    page.reload()
    page.locator("input[type=file]").first.set_input_files(torn)
    page.locator("a", has_text="KB").or_(page.get_by_text("torn")).first.wait_for()
    page.get_by_role("button", name="Predict").click()
    said = page.get_by_text("torn.jpg: cannot be read").first
    said.wait_for()
    assert str(server.temporary) not in said.text_content()  # where it lies here is nobody's matter
