"""The page that computes in the browser, in Chromium without a screen."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.data import ROOT, make_scene, save_image, truncate_file
from helpers.processes import PATIENCE
from helpers.servers.browser import build_page, serving_page, serving_plainly
from PIL import Image, ImageDraw

import app
import predict
from src import Predictor, Style, load_model, render
from src.pictures.images import open_image
from src.weights.load import SHIPPED
from web.browser import build

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_page(tmp_path_factory)


@pytest.fixture(scope="module")
def address(built):
    with serving_page(built[0]) as address:
        yield address


@pytest.fixture
def page(browser, address):
    context = browser.new_context()
    page = context.new_page()
    open_page(page, address)
    yield page
    context.close()


def open_page(page, address):
    """Go there; returns what the page says once it is ready."""
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    return wait_until_ready(page)


def wait_until_ready(page):
    status = page.locator("#status", has_text=re.compile("Ready|could not"))
    status.wait_for()
    assert "Ready" in status.text_content()
    return status.text_content()


def compute(page, paths):
    """Give the page images, and wait until each has a result or an error; returns the texts."""
    page.locator("#files").set_input_files([str(path) for path in paths])
    done = page.locator(".card > .about > p", has_text=re.compile(r"\d ms$|: "))
    done.nth(len(paths) - 1).wait_for()
    return done.all_text_contents()


def download(page, name, folder):
    """The image in the file that the button of an image gives."""
    with page.expect_download() as started:
        page.get_by_role("button", name=f"Download PNG of {name}", exact=True).click()
    path = folder / started.value.suggested_filename
    started.value.save_as(path)
    with Image.open(path) as image:
        image.load()
    return image


def choose_mask(page):
    page.get_by_label("Mask").check()
    page.get_by_label(re.compile("Edges")).uncheck()


def make_photos(folder):
    """Photos of this repository, in the forms that photos come in."""
    sheet = open_image(ROOT / "docs/pictures/first.png").convert("RGB")
    width, height = sheet.width // 4, sheet.height // 3
    photos = [sheet.crop((i * width, 0, (i + 1) * width, height)) for i in range(4)]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    save_image(folder / "turned.jpg", photos[0].resize((1500, 900)), exif=exif, quality=95)
    alpha = Image.new("L", photos[1].size, 255)
    ImageDraw.Draw(alpha).rectangle((0, 0, 30, height), fill=0)
    ImageDraw.Draw(alpha).rectangle((30, 0, 60, height), fill=128)
    photos[1].putalpha(alpha)
    save_image(folder / "clear.png", photos[1])
    save_image(folder / "small.png", photos[2].resize((150, 40)))
    save_image(folder / "grey.webp", photos[3].convert("L"), lossless=True)
    return sorted(folder.iterdir())


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


def test_files_that_are_no_use(page, tmp_path):
    """Each is named, with what is wrong; the sound one among them has its result."""
    sound = save_image(tmp_path / "sound.png", make_scene(0, 200, 150)[0])
    torn = truncate_file(save_image(tmp_path / "torn.jpg", make_scene(1, 200, 200)[0]))
    huge = save_image(tmp_path / "huge.png", Image.new("1", (20_000, 20_000)))
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    others = [tmp_path / name for name in ("text.jpg", "empty.png", "phone.heic")]
    told = "\n".join(compute(page, [torn, huge, *others, sound]))
    assert "torn.jpg: cannot be read: it is torn" in told
    assert "huge.png: 20000 × 20000 pixels are more than 100 million; shrink it" in told
    assert "text.jpg: not an image" in told and "empty.png: the file is empty" in told
    assert "phone.heic: HEIC" in told and "200 × 150, " in told
    assert download(page, "sound.png", tmp_path).size == (200, 150)


def test_fifty_megapixels(page, tmp_path):
    """At full size, through small canvases."""
    large = Image.fromarray(make_scene(0, 866, 578)[0]).resize((8660, 5780))
    path = save_image(tmp_path / "large.jpg", large, quality=60)
    choose_mask(page)
    assert "8660 × 5780" in compute(page, [path])[0]
    mask = download(page, "large.jpg", tmp_path)
    assert (mask.size, mask.mode) == ((8660, 5780), "L")


def test_a_plain_host_and_no_network(built, browser, tmp_path):
    """The service worker adds the headers for threads, and later the page works without the host;
    on a telephone's screen nothing is wider than that."""
    sound = save_image(tmp_path / "sound.png", make_scene(0, 200, 150)[0])
    context = browser.new_context(viewport={"width": 360, "height": 740})
    with serving_plainly(built[0]) as (address, stop):
        page = context.new_page()
        said = open_page(page, address)
        assert "It works without a connection" in said
        assert page.evaluate("crossOriginIsolated")
        stop()
    context.set_offline(True)
    page.reload()
    wait_until_ready(page)
    compute(page, [sound])
    assert download(page, "sound.png", tmp_path).size == (200, 150)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    context.close()


def test_no_service_worker(built, browser):
    """It runs in one thread, and says so."""
    context = browser.new_context(service_workers="block")
    with serving_plainly(built[0]) as (address, _):
        said = open_page(context.new_page(), address)
    context.close()
    assert "one thread" in said and "headers that this host does not send" in said
    assert "without a connection" not in said


def test_what_is_built(built):
    """Small enough; how images are prepared is what the file's metadata say."""
    folder, printed = built
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    assert sizes[folder / "model.onnx"] <= 2_500_000
    rest = [size for path, size in sizes.items() if path.parent == folder]
    assert sum(rest) - sizes[folder / "model.onnx"] <= 200_000
    about = json.loads((folder / "model.json").read_text())
    assert about["img_size"] == load_model(SHIPPED).img_size
    assert about["mean"] == [0.485, 0.456, 0.406]
    assert about["bytes"] == sizes[folder / "model.onnx"] and about["resampling"] == "bilinear"
    for row in ("network", "page", "runtime wasm", "runtime jspi", "runtime webgpu"):
        assert re.search(rf"^{row} +[\d.]+ kB", printed, re.M)
    assert "MIT" in (folder / "runtime/LICENCE.txt").read_text()
    page = Path(folder / "index.html").read_text()
    assert not re.search(r"https?://", page)


def test_as_it_is_served(built, address, browser):
    """The headers and types; what is not there, and paths that lead elsewhere, are not found."""
    context = browser.new_context()
    ask = context.request
    answer = ask.get(address)
    assert answer.headers["cross-origin-embedder-policy"] == "require-corp"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    wasm = ask.head(f"{address}runtime/ort-wasm-simd-threaded.wasm")
    assert wasm.headers["content-type"] == "application/wasm"
    module = ask.get(f"{address}runtime/ort.wasm.min.mjs")
    assert module.headers["content-type"].startswith("text/javascript")
    for path in ("nothing", "..%2f..%2fetc%2fpasswd", "a%00b", "a%ff", "x" * 300):
        answer = ask.get(address + path)
        assert answer.status == 404 and answer.json() == {"error": "there is no such page"}
    assert ask.post(address).status == 405
    context.close()


def test_flags(call, tmp_path):
    status, _, told = call(app.main, "--browser", tmp_path)
    assert status == 2 and told.count("\n") == 1 and "make browser" in told
    status, _, told = call(app.main, "--browser", tmp_path, "--cors", "*", "--device", "cpu")
    assert status == 2 and "--cors" in told and "--device" in told


@pytest.mark.parametrize("size", ["480x320", "auto"])
def test_the_page_takes_squares(call, tmp_path, size):
    status, _, err = call(build.main, "--img-size", size, "--output", tmp_path / "page")
    assert status == 2 and "--img-size" in err and "squares" in err
    assert not (tmp_path / "page").exists()
