"""--detail: a second look where the map is unsure."""

import numpy as np
import pytest
import torch
from helpers.data import make_scene, save_image
from PIL import Image
from torch.nn.functional import interpolate

import predict
from src import Predictor, UserError, build_model
from src.inference.detail import look_closer, plan
from src.inference.sizes import InputSize

Y, X = np.mgrid[:600, :800]
DISC = np.hypot(Y - 300, X - 300) < 90


class Sharp:
    """Stands for a predictor that sees what is red, at the size that it is shown."""

    size = InputSize(64, 64)

    def __init__(self):
        self.shown = []

    def prepare(self, image):
        self.shown.append(image.size)
        small = image.convert("RGB").resize((64, 64), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)

    def maps(self, images):
        return (images[:, 0].float() - images[:, 2].float()).div(255).clamp(0, 1)


def scene(disc=DISC):
    """A red disc before blue, and its map by a network that sees 64²."""
    array = np.where(disc[..., None], (255, 0, 0), (0, 0, 255)).astype(np.uint8)
    image = Image.fromarray(array)
    small = Sharp().maps(Sharp().prepare(image)[None])[None]
    first = interpolate(small, disc.shape, mode="bilinear")[0, 0].numpy()
    return image, np.ascontiguousarray(first)


@pytest.mark.parametrize("count", [1, 5, 13])
def test_outlines_come_nearer(count):
    """With each level of parts; what was sure stays to the bit."""
    image, first = scene()
    before = np.abs(first - DISC).mean()
    network = Sharp()
    found = look_closer(network, image, first.copy(), count)
    assert np.abs(found - DISC).mean() < before * {1: 0.75, 5: 0.6, 13: 0.5}[count]
    assert 0 < len(network.shown) <= count
    far = np.abs(np.hypot(Y - 300, X - 300) - 90) > 60
    assert np.array_equal(found[far], first[far])
    assert found.min() >= 0 and found.max() <= 1


def test_no_seams():
    """Where parts meet, the map goes on as smoothly as inside of one."""
    image, first = scene(np.abs(Y - 300) < 80 + X // 8)
    found = look_closer(Sharp(), image, first.copy(), 20)
    jumps = np.abs(np.diff(found, axis=1))
    assert jumps.max() < 0.25


def test_another_opinion_does_not_count():
    """Parts of which the network finds nothing at all leave the map as it was."""
    image, first = scene()

    class Blind(Sharp):
        def maps(self, images):
            return torch.zeros(len(images), 64, 64)

    found = look_closer(Blind(), image, first.copy(), 9)
    assert ((found > 0.5) != (first > 0.5)).mean() < 0.004  # a rim of the outline's own width
    assert np.abs(found - first).mean() < 0.004


@pytest.mark.parametrize("image", [(800, 600), (5000, 40), (40, 5000), (64, 64), (10, 7)])
@pytest.mark.parametrize("count", [0, 1, 4, 30])
def test_plans_are_bounded(image, count):
    """Parts lie in the image, are no smaller than what the network sees (but for the image's own
    sides), and are at most as many as wanted."""
    rng = np.random.default_rng(0)
    for share in (0, 0.001, 0.1, 1):
        unsure = rng.random((64, 64)) < share
        boxes = [box for level in plan(unsure, image, (32, 32), count) for box in level]
        assert len(boxes) <= count
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= image[0] and 0 <= top < bottom <= image[1]
            assert right - left >= min(31, image[0]) and bottom - top >= min(31, image[1])


def test_all_that_is_unsure_is_in_the_middle_of_a_part():
    rng = np.random.default_rng(1)
    unsure = np.zeros((64, 64), bool)
    unsure[20:40, 12:50] = rng.random((20, 38)) < 0.1
    for boxes in plan(unsure, (6400, 6400), (64, 64), 40):
        for y, x in np.argwhere(unsure) * 100 + 50:
            sides = [
                min(x - left, right - x, y - top, bottom - y) / (right - left)
                for left, top, right, bottom in boxes
            ]
            assert max(sides) > 0.23


def test_every_way_gives_the_same(weights, call, tmp_path):
    """Path, array, tensor, image and file; another size; with a file's hidden colours too."""
    rng = np.random.default_rng(0)
    array = np.array(Image.fromarray(make_scene(2, 90, 60)[0]).resize((360, 240)))
    path = save_image(tmp_path / "a.png", array)
    for size in (32, (48, 32), "auto"):
        predictor = Predictor(weights, size, "cpu", "off", detail=6)
        found = predictor(array)
        assert np.array_equal(predictor(path), found)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        assert np.array_equal(predictor(torch.stack([tensor] * 2))[1].numpy(), found)
    argv = (
        "--weights",
        weights,
        "--img-size",
        32,
        "--device",
        "cpu",
        "--amp",
        "off",
        "--detail",
        6,
    )
    assert call(predict.main, path, *argv, "--output", tmp_path / "o.png")[0] == 0
    expected = Predictor(weights, 32, "cpu", "off", detail=6)(array)
    written = np.asarray(Image.open(tmp_path / "o.png"), int)
    assert np.abs(written - expected * 255).max() <= 0.51
    hidden = []
    for _ in range(2):
        alpha = np.where(X[:240, :360] < 150, 0, 255).astype(np.uint8)
        noise = rng.integers(0, 255, array.shape, np.uint8)
        colours = np.where(alpha[..., None] == 0, noise, array)
        hidden.append(predictor.map(Image.fromarray(np.dstack([colours, alpha]))))
    assert np.array_equal(*hidden)


def test_what_it_is_not_for(weights):
    with pytest.raises(UserError, match=r"^detail 3: .* not for the preset rembg"):
        Predictor(weights, 32, "cpu", preset="rembg", detail=3)
    classes = build_model("u2net_lite", out_ch=3, activation="softmax")
    with pytest.raises(UserError, match=r"^detail 3: .* not for several classes"):
        Predictor(classes, 32, "cpu", detail=3)
