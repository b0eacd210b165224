"""Large images: the same results in strips, and no more copies of them at once than needed."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.device import return_freed_memory
from src.pictures import images, layers, matting
from src.pictures.render import Style, render, render_with_box

BEHIND = Image.linear_gradient("L").convert("RGB").resize((37, 23))
STYLES = {
    "mask": Style(),
    "refined": Style(refine=True),
    "overlay": Style("overlay"),
    "cutout": Style("cutout", refine=True, crop=True),
    "colour": Style("background", "green"),
    "blur": Style("background", "blur"),
    "picture": Style("background", BEHIND),
}


def scene(mode, width, height, part=4):
    """A picture whose rows all differ, and the map of a disc in its middle."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    colours = np.stack([x % 256, 255 * y / height, (x + 2 * y) % 256], -1).astype(np.uint8)
    saliency = (min(width, height) / part - np.hypot(y - height / 2, x - width / 2)) / 6 + 0.5
    image = Image.fromarray(colours)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode == "P":
        image = image.quantize(16)
        image.info["transparency"] = 3
    elif mode != "RGB":
        image.putalpha(
            Image.fromarray(np.where(y < height / 2, x.clip(20, 275) - 20, 255).astype(np.uint8))
        )
        image = image.convert(mode)
    return image, saliency.clip(0, 1)


def shrink_limits(monkeypatch, strip):
    """Strips of so few pixels; any image is a large one."""
    monkeypatch.setattr(images.strips, "__defaults__", (strip,))
    monkeypatch.setattr(matting, "_STRIP", strip // 4)
    for module in (images, layers):
        monkeypatch.setattr(module, "STRIP", strip)
        monkeypatch.setattr(module, "LARGE", 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "CMYK", "RGBa"])
@pytest.mark.parametrize("name", STYLES)
def test_written_over_and_in_strips_it_is_the_same(name, mode, monkeypatch):
    if mode == "CMYK":
        image, saliency = scene("RGB", 160, 121)
        image = image.convert("CMYK")
    else:
        image, saliency = scene(mode, 160, 121)
    pixels, levels = image.tobytes(), saliency.copy()
    whole = render(image, saliency, STYLES[name])
    assert image.tobytes() == pixels and np.array_equal(saliency, levels)  # the caller's
    shrink_limits(monkeypatch, 160 * 13)
    if name == "blur":
        monkeypatch.setattr(layers, "SMALL", 160 * 121)  # not also at a fraction of its size
    for reuse in (False, True):
        found, _ = render_with_box(image, saliency, STYLES[name], reuse)
        assert found.mode == whole.mode and found.size == whole.size
        off = np.abs(np.array(found, int) - np.array(whole, int)).max()
        # Pillow rounds where the part of a layer begins that is resized for a strip.
        assert off <= (1 if name in ("cutout", "blur", "picture") else 0)
    with pytest.raises(ValueError, match="closed"):
        image.tobytes()


def test_a_large_background_is_blurred_at_a_fraction_of_its_size(monkeypatch):
    image, saliency = scene("RGB", 320, 240)
    whole = np.array(render(image, saliency, STYLES["blur"]), int)
    shrink_limits(monkeypatch, 320 * 20)
    monkeypatch.setattr(layers, "SMALL", 320 * 240 // 9)
    found = np.array(render(image, saliency, STYLES["blur"]), int)
    off = np.abs(found - whole)
    assert (
        off.max() > 0
        and off.mean() < 1.5
        and np.array_equal(found[saliency == 1], whole[saliency == 1])
    )


def memory(name):
    """Bytes of this process: VmRSS, now, or VmHWM, at most since it was set back."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s*(\d+)", status)[1])


# Bytes a pixel beside picture and map. A copy of the colours takes 4, a mask or an alpha 1.
@pytest.mark.parametrize(
    ("mode", "name", "limit"),
    [("RGB", "overlay", 5), ("RGB", "colour", 8), ("RGBA", "overlay", 12), ("RGBA", "blur", 14)],
)
def test_no_more_copies_than_needed(mode, name, limit, monkeypatch):
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
    except OSError as error:
        pytest.skip(f"the highest size so far cannot be set back here ({error})")
    shrink_limits(monkeypatch, 1 << 17)
    monkeypatch.setattr(matting, "_COLOUR_SIDE", 128)
    monkeypatch.setattr(layers, "SMALL", 1 << 17)
    taken = []
    for _ in range(4):  # the first brings in code
        image, saliency = scene(mode, 2000, 1600, part=20)
        owned = [saliency]
        del saliency
        return_freed_memory()
        reset.write_text("5")
        before = memory("VmRSS")
        render_with_box(image, owned.pop(), STYLES[name], reuse=True)
        taken.append((memory("VmHWM") - before) / (2000 * 1600))
    assert min(taken[1:]) < limit
