"""Masks as rembg makes them, against its steps written down in numpy."""

import copy

import numpy as np
import pytest
import torch
from helpers.data import make_scene
from PIL import Image

from src import Predictor, UserError, build_model

LANCZOS = Image.Resampling.LANCZOS


def rembg_mask(network, picture):
    """rembg 2.0.86's BaseSession.normalize and U2netCustomSession.predict, step by step."""
    image = np.array(picture.convert("RGB").resize((320, 320), LANCZOS))
    image = image / max(np.max(image), 1e-6)
    planes = np.zeros((320, 320, 3))
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        planes[:, :, channel] = (image[:, :, channel] - mean) / std
    batch = torch.from_numpy(planes.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.no_grad():
        found = network(batch).numpy()[0, 0]
    stretched = (found - found.min()) / (found.max() - found.min())
    return Image.fromarray((stretched * 255).astype("uint8")).resize(picture.size, LANCZOS)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(5)
    return build_model("u2net_lite").eval()


@pytest.mark.parametrize("mode", ["RGB", "dark", "RGBA"])
def test_rembg(network, mode):
    picture, mask = make_scene(3, 130, 70)
    image = Image.fromarray(picture // 3 if mode == "dark" else picture)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(mask))
    ours = Predictor(network, device="cpu", preset="rembg")(image)
    expected = np.asarray(rembg_mask(network, image), int)
    assert expected.max() > 200  # there is something to compare
    assert np.abs(np.asarray(ours, int) - expected).max() <= 1


def test_a_constant_map_is_empty(network):
    """rembg divides by 0 here."""
    preset = Predictor(network, device="cpu", preset="rembg").preset
    assert preset.finish(torch.full((2, 1, 4, 4), 0.3)).max() == 0


@pytest.mark.parametrize("size", ["auto", (64, 96)])
def test_rembg_shows_squares_alone(network, size):
    with pytest.raises(UserError, match="rembg always uses square"):
        Predictor(network, size, device="cpu", preset="rembg")


def test_unknown(network):
    with pytest.raises(UserError, match="rembg"):
        Predictor(network, preset="rembgg")


@pytest.mark.parametrize("trained_at", [128, 192])
def test_rembg_with_another_size_trained_at(network, trained_at):
    """rembg shows every U²-Net 320²; said where that is not its size, and img_size comes first."""
    small = copy.deepcopy(network)
    small.img_size = trained_at
    image = Image.fromarray(make_scene(3, 130, 70)[0])
    predictor = Predictor(small, device="cpu", preset="rembg")
    assert predictor.img_size == 320
    assert f"used at 320² as by rembg, trained at {trained_at}²" in predictor.origin
    expected = np.asarray(rembg_mask(network, image), int)
    assert np.abs(np.asarray(predictor(image), int) - expected).max() <= 1
    assert Predictor(small, 64, "cpu", preset="rembg").img_size == 64
    assert Predictor(small, device="cpu").img_size == trained_at
