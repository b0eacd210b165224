"""Maps that hold still: measured on a still that is panned, whose mask is known."""

from itertools import pairwise

import numpy as np
import pytest
from clips import make_video, read
from helpers.data import make_scene
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

import predict
from src import UserError

steady = pytest.importorskip("src.video.steady")
pytest.importorskip("cv2", reason="OpenCV is not installed")
WIDTH, HEIGHT, STEP = 160, 120, 3


def panned(seed, count=20):
    """Frames of a textured image that moves by STEP pixels each, their true maps, and such as
    flicker in patches."""
    rng = np.random.default_rng(seed)
    wide = WIDTH + STEP * count
    texture = np.zeros((HEIGHT, wide, 3))
    for n in (4, 12):
        grid = rng.normal(size=(HEIGHT // n, wide // n + 1, 3))
        texture += n**0.5 * zoom(grid, (n, n, 1), order=1)[:HEIGHT, :wide]
    texture = (128 + 18 * texture).clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:HEIGHT, :wide]
    mask = (np.hypot(y - 60, x - 110) < 35).astype(np.float32)
    for i in range(count):
        part = np.s_[:, STEP * i : STEP * i + WIDTH]
        flicker = 2.5 * gaussian_filter(rng.normal(size=(HEIGHT, WIDTH)), 8)
        soft = gaussian_filter(mask[part], 1.5)
        true = (0.2 + 0.6 * soft).astype(np.float32)  # so that no flicker is cut off
        noisy = (true + flicker).clip(0, 1).astype(np.float32)
        yield Image.fromarray(np.ascontiguousarray(texture[part])), true, noisy


def flicker_of(maps):
    """How much what is seen of one spot changes, of all spots that stay in the image."""
    pairs = pairwise(maps)
    return np.mean([np.abs(a[:, STEP:] - b[:, :-STEP]).mean() for a, b in pairs])


def test_a_panned_still():
    """Half the flicker and less, nearer to the true map, and no trail."""
    mean = steady.Steady()
    frames = list(panned(0))
    found = [mean.add(image, noisy) for image, _, noisy in frames]
    assert np.array_equal(found[0], frames[0][2])
    assert flicker_of(found[4:]) < 0.5 * flicker_of([noisy for *_, noisy in frames[4:]])
    errors = [
        [np.abs(saliency - true).mean() for saliency in (ours, noisy)]
        for ours, (_, true, noisy) in zip(found[4:], frames[4:], strict=True)
    ]
    ours, theirs = np.mean(errors, 0)
    assert ours < 0.75 * theirs
    assert all(f.dtype == np.float32 and f.min() >= 0 and f.max() <= 1 for f in found)


def test_a_cut_begins_anew():
    """The first map of another scene is its own to the bit; so is one of another size."""
    mean = steady.Steady()
    for image, _, noisy in panned(0, 4):
        mean.add(image, noisy)
    (image, _, noisy), *_ = panned(5, 1)
    assert np.array_equal(mean.add(image, noisy), noisy)
    assert np.array_equal(mean.add(image.resize((80, 60)), noisy[::2, ::2]), noisy[::2, ::2])


def test_what_appears_is_not_averaged_away():
    """An object that comes into a still image is seen at once."""
    mean = steady.Steady()
    (image, _, _), *_ = panned(0, 1)
    empty = np.zeros((HEIGHT, WIDTH), np.float32)
    for _ in range(5):
        mean.add(image, empty)
    with_object = np.array(image)
    with_object[40:80, 60:100] = (250, 20, 20)
    saliency = empty.copy()
    saliency[40:80, 60:100] = 1
    found = mean.add(Image.fromarray(with_object), saliency)
    assert found[45:75, 65:95].min() > 0.95 and found[:30].max() < 0.05


def test_several_classes_and_a_missing_package(monkeypatch):
    mean = steady.Steady()
    with pytest.raises(UserError, match="steady: maps of several classes"):
        mean.add(Image.new("RGB", (9, 9)), np.zeros((3, 9, 9), np.float32))
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(UserError, match="steady: needs OpenCV: pip install"):
        steady.Steady()


def test_videos(call, weights, tmp_path):
    """Frames in order; with every flag that changes results; images have no time."""
    plain = ("--weights", weights, "--img-size", 32, "--device", "cpu")
    source = make_video(tmp_path / "a.mp4", times=range(6), sound=None)
    for flags in ((), ("--mode", "overlay", "--refine"), ("--frames", "--crop")):
        status, _, err = call(
            predict.main, source, *plain, "--steady", *flags, "--output", tmp_path / "out"
        )
        assert status == 0, err
    assert (
        len(read(tmp_path / "out/a.mp4")[0]) == 6 and len(list((tmp_path / "out/a").iterdir())) == 6
    )
    image = tmp_path / "a.png"
    Image.fromarray(make_scene(1)[0]).save(image)
    status, _, err = call(predict.main, image, *plain, "--steady")
    assert status == 2 and "--steady goes with videos" in err
