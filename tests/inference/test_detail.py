"""--detail: a second look where the map is unsure."""

import json

import numpy as np
import pytest
import torch
from helpers.data import SMALL, make_pairs, make_scene, make_varied_network, save_image
from PIL import Image
from torch.nn.functional import interpolate

import predict
import validation
from src import Predictor, UserError, build_model, save_model
from src.export.int8 import export_int8
from src.inference.detail import look_closer, plan
from src.inference.sizes import InputSize

PARTS = 24
CPU = "cpu", "off"
FLAGS = "--img-size", 32, "--device", "cpu", "--amp", "off", "--detail", PARTS
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights to whose maps of large images a second look makes a difference."""
    path = tmp_path_factory.mktemp("trained") / "net.pt"
    save_model(make_varied_network(SMALL), path)
    return path


@pytest.fixture(scope="module")
def enlarged(tmp_path_factory):
    """Three images several times the size that a network of 32² sees, and their masks."""
    root = tmp_path_factory.mktemp("enlarged")
    for seed in range(3):
        for folder, part in zip(("images", "masks"), make_scene(seed, 90, 60), strict=True):
            array = np.array(Image.fromarray(part).resize((360, 240), Image.Resampling.NEAREST))
            save_image(root / folder / f"{seed}.png", array)
    return root


def test_every_way_gives_the_same(trained, enlarged, call, tmp_path):
    """Path, array, tensor, image and file; another size; with a file's hidden colours too."""
    path = enlarged / "images" / "2.png"
    array = np.array(Image.open(path))
    for size in (32, (48, 32), "auto"):
        predictor = Predictor(trained, size, *CPU, detail=PARTS)
        found = predictor(array)
        if size == 32:
            assert np.abs(found - Predictor(trained, size, *CPU)(array)).max() > 0.1
        assert np.array_equal(predictor(path), found)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        assert np.array_equal(predictor(torch.stack([tensor] * 2))[1].numpy(), found)
    argv = "--weights", trained, *FLAGS, "--output", tmp_path / "o.png"
    assert call(predict.main, path, *argv)[0] == 0
    expected = Predictor(trained, 32, *CPU, detail=PARTS)(array)
    written = np.asarray(Image.open(tmp_path / "o.png"), int)
    assert np.abs(written - expected * 255).max() <= 0.51
    rng, hidden = np.random.default_rng(0), []
    for _ in range(2):
        alpha = np.where(X[:240, :360] < 150, 0, 255).astype(np.uint8)
        noise = rng.integers(0, 255, array.shape, np.uint8)
        colours = np.where(alpha[..., None] == 0, noise, array)
        hidden.append(predictor.map(Image.fromarray(np.dstack([colours, alpha]))))
    assert np.array_equal(*hidden)


def test_int8_files_look_closer(trained, enlarged, tmp_path, monkeypatch):
    """They find what their floats find, in squares and at each image's own aspect ratio."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    make_pairs(tmp_path / "images", tmp_path / "masks", "abcde")
    file, image = tmp_path / "net.onnx", enlarged / "images" / "1.png"
    export_int8(make_varied_network(SMALL), file, tmp_path / "images", 0.5)
    for size in (32, "auto"):
        plain, closer = (Predictor(file, size, detail=count)(image) for count in (0, PARTS))
        floats, expected = (
            Predictor(trained, size, *CPU, detail=count)(image) for count in (0, PARTS)
        )
        lost, moved = np.abs(plain - floats).mean(), np.abs(expected - floats).mean()
        assert np.abs(closer - expected).mean() < min(2 * lost + 0.002, 0.5 * moved), size


def test_what_it_is_not_for(weights):
    with pytest.raises(UserError, match=r"^detail 3: .* not for the preset rembg"):
        Predictor(weights, 32, "cpu", preset="rembg", detail=3)
    classes = build_model("u2net_lite", out_ch=3, activation="softmax")
    with pytest.raises(UserError, match=r"^detail 3: .* not for several classes"):
        Predictor(classes, 32, "cpu", detail=3)


@pytest.mark.parametrize("count", [-1, 1.5, "3", None, True])
def test_counts_that_are_none(weights, count):
    with pytest.raises(UserError, match=r"^detail.*: expected an integer ≥ 0"):
        Predictor(weights, detail=count)


@pytest.mark.parametrize(("maps", "metrics"), [(1, "basic"), (2, "basic"), (2, "semantic")])
def test_scored_as_predicted(call, enlarged, tmp_path, maps, metrics):
    """validation.py's scores by the network are those of predict.py's masks; its outputs say so."""
    activation = "sigmoid" if maps == 1 else "softmax"
    network = make_varied_network(SMALL, out_ch=maps, activation=activation)
    save_model(network, tmp_path / "net.pt")
    weights = "--weights", tmp_path / "net.pt", *FLAGS
    mode = "mask" if metrics == "basic" else "binary"
    folder = tmp_path / "maps"
    made = call(predict.main, enlarged / "images", *weights, "--output", folder, "--mode", mode)
    assert made[0] == 0, made[2]
    scores, rows = tmp_path / "s.json", []
    data = "--data-path", enlarged, "--metrics", metrics, "--workers", 0, "--json", scores
    for source in (weights, ("--pred-dir", folder), weights[:-2]):
        normalize = ("--no-normalize",) if metrics == "basic" else ()
        status, said, err = call(validation.main, *source, *data, *normalize)
        assert status == 0, err
        rows.append(json.loads(scores.read_text()))
        assert (f", up to {PARTS} parts looked at again" in said) == (source is weights)
    assert rows[0]["detail"] == PARTS and "detail" not in rows[1] and rows[2]["detail"] == 0
    names = set(rows[1]) - {"pred_dir", "missing", "extra", "resized"}
    assert {"mae", "s_measure"} <= names or "mean_iou" in names
    for name in names:
        assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-6), name
    assert any(rows[0][name] != rows[2][name] for name in names), "the same without"


def test_an_image_that_fails_is_named(call, enlarged, monkeypatch, weights, tmp_path):
    """Where a part gives no finite values, the image is left out, and the others are scored."""
    calls = []

    def look(predictor, image, saliency, count):
        calls.append(image.size)
        if len(calls) == 2:
            raise UserError("the network gives values that are not finite")
        return saliency

    monkeypatch.setattr("src.inference.predictor.look_closer", look)
    scores = tmp_path / "s.json"
    argv = "--weights", weights, "--img-size", 32, "--detail", 2, "--device", "cpu", "--workers", 0
    status, _, err = call(validation.main, *argv, "--data-path", enlarged, "--json", scores)
    assert status == 2 and f"{enlarged / 'images' / '1.png'}: the network gives values" in err
    row = json.loads(scores.read_text())
    assert row["unreadable"] == ["1"] and row["images"] == 2 and calls == [(360, 240)] * 3


def test_maps_of_a_folder_are_not_looked_at(call, enlarged):
    status, _, err = call(
        validation.main, "--pred-dir", enlarged / "masks", "--data-path", enlarged, "--detail", 3
    )
    assert status == 2 and "--detail" in err and "--weights" in err
