"""The size at which the network sees an image: squares, rectangles, and each image's own aspect."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.data import make_pairs, make_scene, save_image
from PIL import Image

import export
import predict
import validation
from src import Predictor, UserError, build_model, load_model, save_model
from src.export.common import describe_network
from src.inference.int8 import OnnxBackend
from src.inference.preprocess import normalize
from src.inference.sizes import InputSize, parse_size


@pytest.fixture(scope="module")
def network(weights):
    model = load_model(weights)
    model.img_size = 96
    return model


def plainly(network, array, height, width):
    """The map by torch's own operations."""
    image = torch.from_numpy(array).permute(2, 0, 1)[None]
    seen = F.interpolate(image, (height, width), mode="bilinear", antialias=True)
    with torch.no_grad():
        maps = network.eval()(normalize(seen))
    size = array.shape[:2]
    return F.interpolate(maps, size, mode="bilinear", antialias=True)[0, 0].clamp(0, 1).numpy()


@pytest.mark.parametrize(
    ("size", "seen"),
    [(64, (64, 64)), ((96, 64), (64, 96)), ("96x64", (64, 96)), ("33x50", (50, 33)), (None, None)],
)
def test_width_comes_first(network, size, seen):
    """Of what is given; arrays and tensors have the height first."""
    array = make_scene(1, 60, 90)[0]
    predictor = Predictor(network, size, "cpu", "off")
    expected = plainly(network, array, *(seen or (96, 96)))
    assert predictor(array) == pytest.approx(expected, abs=2e-4)
    assert predictor.prepare(Image.fromarray(array)).shape[1:] == (seen or (96, 96))
    batch = torch.from_numpy(array).permute(2, 0, 1)[None]
    assert torch.equal(predictor(batch)[0], torch.from_numpy(predictor(array)))


@pytest.mark.parametrize(
    ("image", "seen"),
    [((48, 64), (96, 96)), ((30, 60), (64, 128)), ((60, 30), (128, 64)), ((1, 900), (32, 288))],
)
def test_auto_keeps_the_aspect(network, image, seen):
    """At the area of 96²; one predictor for all, sizes coming back in any order."""
    predictor = Predictor(network, "auto", "cpu", "off")
    for height, width in (image, (50, 50), image[::-1], image):
        array = np.resize(make_scene(2, 90, 60)[0], (height, width, 3))
        expected_size = {image: seen, image[::-1]: seen[::-1]}.get((height, width), (96, 96))
        expected = plainly(network, array, *expected_size)
        assert predictor(array) == pytest.approx(expected, abs=2e-4), (height, width)
    assert (predictor.img_size, str(predictor.size)) == ("auto", "the area of 96², aspect kept")


@pytest.mark.parametrize("side", [32, 96, 320, 333, 1024])
def test_auto_is_bounded(side):
    """In multiples of 32, at most half more than the square's area; exact for the square."""
    size = InputSize(side, side, auto=True)
    rng = np.random.default_rng(0)
    shapes = [(1, 1), (1, 200_000), (200_000, 1)]
    for height, width in [*shapes, *rng.integers(1, 9000, (200, 2)).tolist()]:
        found = size.fit(height, width)
        assert all(n % 32 == 0 and n >= 32 for n in found)
        assert found[0] * found[1] <= max(1.5 * side**2, 1.1 * side**2 + 32 * 32)
        assert size.fit(width, height) == found[::-1]
        if max(found) > 4 * 32 and max(height / width, width / height) < 1.7 and side > 300:
            assert found[1] / found[0] == pytest.approx(width / height, rel=0.16)


@pytest.mark.parametrize(
    "wrong",
    ["big", "31", "0", "8193", "64x", "x64", "20x400", "64x64x64", (64,), (64, 0), 6.4, True],
)
def test_sizes_that_are_none(network, wrong):
    with pytest.raises(UserError, match=r"^img_size .*: (give a side|expected from)"):
        Predictor(network, wrong, "cpu")


@pytest.mark.parametrize("size", ["96x64", "auto"])
def test_predictions_and_scores(call, network, tmp_path, size):
    """Both scripts see images alike: maps written by one score as the other's own; odd sizes,
    strips and images of a pixel too."""
    make_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    for name, shape in (("c", (90, 31)), ("d", (1, 70)), ("e", (1, 1))):
        image, mask = (np.resize(x, (*shape, *x.shape[2:])) for x in make_scene(3))
        save_image(tmp_path / f"images/{name}.png", image)
        save_image(tmp_path / f"masks/{name}.png", mask)
    plain = ("--img-size", size, "--device", "cpu", "--amp", "off")
    save_model(network, weights := tmp_path / "w.pt")
    status, _, err = call(
        predict.main, tmp_path / "images", "--weights", weights, *plain, "--output", tmp_path / "o"
    )
    assert status == 0, err
    data = (
        "--data-path",
        tmp_path,
        "--workers",
        0,
        "--no-normalize",
        "--json",
        tmp_path / "s.json",
    )
    maps = ("--weights", weights, "--pred-dir", tmp_path / "o")
    status, said, err = call(validation.main, *maps, *data, "--no-normalize", *plain)
    assert status == 0, err
    network, stored = json.loads((tmp_path / "s.json").read_text())
    assert network["images"] == 5 and network["img_size"] == size
    assert network["mae"] == pytest.approx(stored["mae"], abs=1e-6)
    assert ("at 96×64 in" if size == "96x64" else "at the area of 96², aspect kept in") in said


def test_tta(network):
    array = make_scene(2, 40, 80)[0]
    both = Predictor(network, "auto", "cpu", "off", tta=True)(array)
    plain = Predictor(network, "auto", "cpu", "off")
    mirrored = plain(array[:, ::-1].copy())[:, ::-1]
    assert both == pytest.approx((plain(array) + mirrored) / 2, abs=1e-5)


@pytest.mark.parametrize(
    ("size", "resized"), [("96x64", "resized to 96x64 by"), ("auto", "about the area of 96x96")]
)
def test_exports_say_their_size(network, tmp_path, size, resized):
    """ONNX and programs take any size, and their metadata have the one that was asked for."""
    save_model(network, path := tmp_path / "w.pt")
    args = ["--weights", str(path), "--img-size", size, "--output", str(tmp_path / "a.onnx")]
    about = describe_network(exported := export.load_weights(export.parse_args(args)))
    assert (about["img_size"], about["input_size"]) == (96, size) and resized in about["input"]
    assert Predictor(exported, device="cpu").img_size == size
    assert "input_size" not in describe_network(network)


def test_a_package_is_for_one_size(call, weights, tmp_path):
    argv = ("--weights", weights, "--format", "aoti", "--output", tmp_path / "a.pt2")
    status, _, err = call(export.main, *argv, "--img-size", "auto")
    assert status == 2 and "--img-size auto: the file is for one size; give a side or WxH" in err
    status, _, err = call(export.main, *argv, "--img-size", "12x64")
    assert status == 2 and "--img-size: 12x64: expected from 32 to 8192 pixels" in err


def test_a_gpu_batch_of_many_sizes_is_none():
    """Sizes that differ go through one by one."""
    assert parse_size("auto", 64).auto and not parse_size("64x32", 64).auto
    torch.manual_seed(0)
    predictor = Predictor(build_model("u2net_lite"), "auto", "cpu", "off")
    images = [torch.zeros(1, 3, 30, 60), torch.zeros(2, 3, 60, 30)]
    assert [len(predictor(batch)) for batch in images] == [1, 2]


def test_a_file_of_one_size_refuses_others():
    """In one line that names it: it runs as it is."""
    backend = object.__new__(OnnxBackend)
    backend.about, backend.fixed = "a.onnx", (64, 96)
    backend.expect(parse_size((96, 64), 320))
    for wrong, named in (((64, 96), "64x96"), (96, "96"), ("auto", "auto")):
        with pytest.raises(UserError, match=rf"^img_size {named}: a.onnx takes only 96×64$"):
            backend.expect(parse_size(wrong, 320))
