"""What tests do with the page that computes in the browser."""

import re

from helpers.data import ROOT, save_image
from helpers.processes import PATIENCE
from PIL import Image, ImageDraw

from src.pictures.images import open_image

ORIENTATION = 0x0112


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
    page.get_by_label(re.compile("edges")).uncheck()


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
