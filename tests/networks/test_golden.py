"""Outputs of the official code with the published weights, and what our code makes of them."""

import copy
import json

import numpy as np
import pytest
import torch
from helpers.golden import ROUNDING, SHARED, needs_shared
from PIL import Image

from src import FULL, LITE, Predictor, U2Net, build_model, load_model, official
from src.weights.layouts import recognise


@pytest.fixture(scope="module")
def published():
    return load_model(SHARED / "weights/u2netp.pth")


@needs_shared
@pytest.mark.parametrize("size", ["", "odd_"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, ROUNDING), (torch.float64, 1e-4)])
def test_all_seven_maps(published, size, fused, dtype, limit):
    golden = np.load(SHARED / "golden/u2netp_horse.npz")
    network = copy.deepcopy(published).to(dtype)
    network = network.fuse() if fused else network
    with torch.no_grad():
        maps = network.logits(torch.from_numpy(golden[size + "input"]).to(dtype))
    ours = torch.cat(maps).sigmoid().numpy()
    assert np.abs(ours - golden[size + "outputs"]).max() <= limit


@needs_shared
@pytest.mark.parametrize("size", ["", "odd_"])
def test_code_for_the_official_repository(size):
    """Its class over our builder: the published file loads, and gives its seven maps."""
    golden = np.load(SHARED / "golden/u2netp_horse.npz")
    network = official.U2NETP(3, 1)
    state = torch.load(SHARED / "weights/u2netp.pth", weights_only=True)
    assert list(network.state_dict()) == list(state)
    network.load_state_dict(state)
    with torch.no_grad():
        maps = network.eval()(torch.from_numpy(golden[size + "input"]))
    assert np.abs(torch.cat(maps).numpy() - golden[size + "outputs"]).max() <= ROUNDING


@needs_shared
def test_bf16_stays_close(published):
    """The published weights hold a channel of value 226 that plain bf16 rounds to .28 off: the
    horse's mean error is then .0025 against .0003, and single pixels flip."""
    golden = np.load(SHARED / "golden/u2netp_horse.npz")
    predictor = Predictor(published, device="cpu", amp="bf16")
    picture = torch.from_numpy(golden["input"]).bfloat16()
    with torch.no_grad():
        error = np.abs(predictor.model(picture).numpy()[:, 0] - golden["outputs"][0])
    assert error.mean() < 0.001 and error.max() < 0.1


@needs_shared
@pytest.mark.parametrize("name", ["0003.jpg", "boat.jpg", "horse.jpg", "im_14.png"])
def test_reference_masks(published, name):
    """The official results of the official test pictures, by our own preparation."""
    path = SHARED / "reference/images" / name
    with Image.open(SHARED / f"reference/u2netp_results/{path.stem}.png") as image:
        expected = np.asarray(image.convert("L")) / 255
    ours = Predictor(published, amp="off", device="cpu")(path)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).mean() < 0.02


@needs_shared
@pytest.mark.parametrize(("config", "name"), [(FULL, "u2net"), (LITE, "u2netp")])
def test_official_layout_loads_completely(config, name):
    """Every name and shape of the official state_dicts finds its place, none is left over."""
    shapes = json.loads((SHARED / f"golden/{name}_state_dict_shapes.json").read_text())
    theirs = {key: torch.rand(shape) for key, shape in shapes.items()}
    kind, found, state = recognise(theirs, name)
    assert kind == "official U-2-Net layout"
    assert found == config.replace(conv_bias=True)
    network = build_model(found)
    network.load_state_dict(state)
    assert len(state) == len(shapes)


def official_names(config):
    """Names of the official code, written down here independently of the mapping under test."""
    n = len(config.encoder)
    stages = [f"stage{i + 1}" for i in range(n)] + [f"stage{i}d" for i in range(n - 1, 0, -1)]
    for stage, table in zip(stages, (*config.encoder, *config.decoder), strict=True):
        yield f"{stage}.rebnconvin"
        yield from (f"{stage}.rebnconv{i}" for i in range(1, table.height + 1))
        yield from (f"{stage}.rebnconv{i}d" for i in range(table.height - 1, 0, -1))


def test_official_order_is_ours():
    """Both layouts list their convolutions in the order in which they run, so that pairing them
    by position, without any names, must agree with the mapping of names."""
    network = U2Net(LITE.replace(conv_bias=True))
    ours = [n.removesuffix(".conv") for n, _ in network.named_modules() if n.endswith(".conv")]
    named = {}
    state = network.state_dict()
    for theirs, mine in zip(official_names(LITE), ours, strict=True):
        for layer, field in [("conv", "weight"), ("conv", "bias"), ("bn", "running_mean")]:
            named[f"{theirs}.{layer}_s1.{field}"] = state[f"{mine}.{layer}.{field}"]
    named["outconv.weight"] = state["out_conv.weight"]
    *_, mapped = recognise(named, "official")
    assert all(torch.equal(value, state[name]) for name, value in mapped.items())
    assert len(mapped) == len(named)
