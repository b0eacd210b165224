"""What export_int8 refuses to write, without the minutes that quantising takes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import SMALL, make_pairs, make_scene, make_varied_network, save_image

import export
import src.export.int8
from src import Predictor, UserError, load_model
from src.export.int8 import export_int8
from src.weights.load import SHIPPED


def spoil(model, factor):
    """Batch norm weights that are finite, and give values that are not."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight *= factor


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    make_pairs(root / "images", root / "masks", "abcdefgh")
    return root / "images"


def test_a_network_that_gives_no_numbers(images, tmp_path):
    """Refused at once, with the name of the first image held out; where only the check of the float
    file finds it, with the name of the file that was asked for."""
    model = make_varied_network(SMALL)
    spoil(model, 1e30)
    with pytest.raises(UserError, match=r"c\.jpg: .*not finite"):
        export_int8(model, tmp_path / "net.onnx", images)
    assert not list(tmp_path.iterdir())


def test_a_network_that_gives_no_numbers_for_some_inputs(images, tmp_path, monkeypatch):
    def refuse(model, path, **options):
        raise UserError(f"{path}: not written: the network's own maps are not finite")

    monkeypatch.setattr(src.export.int8, "export_onnx", refuse)
    with pytest.raises(UserError, match=f"^{tmp_path}/net.onnx: not written: the network's own"):
        export_int8(make_varied_network(SMALL), tmp_path / "net.onnx", images)
    assert not list(tmp_path.iterdir())


class SpoiltBackend:
    """A backend, one column of whose maps has another value."""

    def __init__(self, backend, value):
        self.backend, self.value = backend, value

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def __call__(self, images):
        maps = self.backend(images).clone()
        maps[..., 0] = self.value
        return maps


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_int8_file_that_gives_no_numbers(images, tmp_path, monkeypatch, value):
    """A mean difference that is NaN is not larger than what is allowed; refused all the same."""

    def load(model, **options):
        if not isinstance(model, Path):
            return Predictor(model, **options)
        predictor = Predictor(make_varied_network(SMALL), device="cpu", amp="off")
        predictor.model = SpoiltBackend(predictor.model, value)
        predictor.precision = "int8"
        return predictor

    monkeypatch.setattr(src.export.int8, "export_onnx", lambda model, path, **options: None)
    monkeypatch.setattr(src.export.int8, "_quantise", lambda floats, path, inputs: path.touch())
    monkeypatch.setattr(src.export.int8, "Predictor", load)
    with pytest.raises(UserError, match=r"c\.jpg: in int8, .*not finite"):
        export_int8(make_varied_network(SMALL), tmp_path / "net.onnx", images, 1.0)
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_calibrate(tmp_path):
    """The message names the parameter."""
    model = make_varied_network(SMALL)
    with pytest.raises(UserError, match=r"calibrate .*nowhere: no such folder"):
        export_int8(model, tmp_path / "net.onnx", tmp_path / "nowhere")
    make_pairs(tmp_path / "images", tmp_path / "masks", "abc")
    with pytest.raises(UserError, match=r"calibrate .*images: holds 3 images; expected at least 5"):
        export_int8(model, tmp_path / "net.onnx", tmp_path / "images")
    with pytest.raises(UserError, match=r"holds 0 images; .*; name the .* such as .*images"):
        export_int8(model, tmp_path / "net.onnx", tmp_path)


def test_images_that_say_nothing(tmp_path):
    """Plain colours and copies: every file passes where maps are the same everywhere."""
    shipped, rng = load_model(SHIPPED), np.random.default_rng(0)
    for i in range(6):
        colour = rng.integers(0, 256, 3, dtype=np.uint8)
        save_image(tmp_path / f"plain/{i}.png", np.tile(colour, (60, 80, 1)))
        save_image(tmp_path / f"copies/{i}.png", make_scene(0)[0])
    with pytest.raises(UserError, match=r"plain: .*finds objects in 0 of its 6 images"):
        export_int8(shipped, tmp_path / "net.onnx", tmp_path / "plain")
    with pytest.raises(UserError, match=r"copies: holds copies: 1 of 6 images differ"):
        export_int8(shipped, tmp_path / "net.onnx", tmp_path / "copies")
    assert not (tmp_path / "net.onnx").exists()


def test_some_images_that_say_nothing(tmp_path):
    """The others are measured on, wherever they come by name."""

    class Brightness:  # a network that sees something in every image that is not of one colour
        def prepare(self, image):
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)

        def probabilities(self, images):
            return images.float().mean(1, keepdim=True) / 255

    for i in range(5):
        save_image(tmp_path / f"{i}.png", np.full((60, 80, 3), 40 * i, np.uint8))
        save_image(tmp_path / f"{i + 5}.png", make_scene(i)[0])
    images = sorted(tmp_path.iterdir())
    held_out = src.export.int8._hold_out(Brightness(), images)
    assert {path.name for path in held_out} == {"7.png", "5.png"}  # in place of 2.png


def test_made_scenes_calibrate():
    """A network sees objects in most, and their values spread as those of photos do."""
    scenes = [src.export.int8.make_scene(seed) for seed in range(8)]
    assert scenes[0].tobytes() == src.export.int8.make_scene(0).tobytes() != scenes[1].tobytes()
    predictor = Predictor(SHIPPED, device="cpu", amp="off")
    assert sum(predictor.map(scene).std() > 0.1 for scene in scenes) >= 6
    inputs = src.export.int8.CalibrationInputs(predictor, [])
    assert len(list(iter(inputs.get_next, None))) == 8


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--output", "x.onnx", "--int8"], "--calibrate"),
        (["--output", "x.onnx", "--calibrate", "x"], "--int8"),
        (["--output", "x.pt2", "--int8", "--calibrate", "x"], "--format onnx"),
        (["--output", "x.onnx", "--int8", "--calibrate", "x", "--half"], "--half"),
        (["--output", "x.onnx", "--int8", "--calibrate", "nowhere"], "nowhere"),
        (["--output", "x.onnx", "--int8", "--calibrate", "."], "0 images"),
    ],
)
def test_wrong_flags(call, argv, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(export.main, *argv)
    assert status == 2 and named in err and "Traceback" not in err
