"""Files for phones: Core ML's program against the network, LiteRT's files in LiteRT itself."""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data import SMALL, make_pairs, make_varied_network

import export
from src import UserError, save_model
from src.export.common import ExportedNetwork
from src.export.mobile import litert
from src.export.mobile.coreml import export_coreml, runs_here
from src.export.mobile.litert import export_litert, export_litert_int8

needs_litert = pytest.mark.skipif(
    find_spec("litert_torch") is None, reason="no litert-torch here; make test-litert has it"
)
no_coreml = find_spec("coremltools") is None
needs_coreml = pytest.mark.skipif(no_coreml, reason="coremltools is not installed")


@pytest.fixture(scope="module")
def model():
    network = make_varied_network(SMALL)
    network.img_size = 64
    return network


@needs_coreml
def test_coreml(call, model, tmp_path):
    """By the command line: a package of one size with what a reader must know, and a second run
    replaces it, by a link too. The program that stands in it gives the network's maps."""
    import coremltools

    save_model(model, tmp_path / "net.pt")
    path = tmp_path / "net.mlpackage"
    status, said, err = call(export.main, "--weights", tmp_path / "net.pt", "--output", path)
    assert status == 0 and ("macOS" in said) != runs_here(), err
    spec = coremltools.models.MLModel(str(path), skip_model_load=True).get_spec()
    (entry,) = spec.description.input
    assert list(entry.type.multiArrayType.shape) == [1, 3, 64, 64] and entry.name == "images"
    assert [output.name for output in spec.description.output] == ["saliency"]
    about = {
        k: json.loads(v) for k, v in spec.description.metadata.userDefined.items() if "." not in k
    }
    assert about["mean"] == [0.485, 0.456, 0.406] and about["img_size"] == 64
    assert about["config"]["name"] == "small" and about["resampling"] == "bilinear"
    link = tmp_path / "link.mlpackage"
    link.symlink_to(path)
    status, _, err = call(export.main, "--weights", tmp_path / "net.pt", "--output", link, "--half")
    assert status == 0 and link.is_symlink(), err
    assert {p.name for p in tmp_path.iterdir()} == {"net.pt", path.name, link.name}


@needs_coreml
def test_a_package_that_differs_is_not_kept(model, tmp_path, monkeypatch):
    """The check reads the weights from the package itself: changed ones are noticed."""
    import coremltools

    save = coremltools.models.MLModel.save
    tensors = ExportedNetwork(model, sides=False).network.state_dict().values()
    weight = max(tensors, key=torch.numel).numpy().tobytes()

    def spoil(self, path):
        save(self, path)
        (file,) = Path(path).glob("**/weight.bin")
        content = file.read_bytes()
        assert content.count(weight) == 1
        file.write_bytes(content.replace(weight, bytes(len(weight))))

    monkeypatch.setattr(coremltools.models.MLModel, "save", spoil)
    with pytest.raises(UserError, match="differs from the network"):
        export_coreml(model, tmp_path / "net.mlpackage")
    assert not list(tmp_path.iterdir())


def test_what_is_no_package_stays(model, tmp_path):
    folder = tmp_path / "mine.mlpackage"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.mlpackage: exists, but is not a Core ML package"):
        export_coreml(model, folder)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(find_spec("litert_torch") is not None, reason="litert-torch is installed")
def test_litert_without_its_package(model, tmp_path, call):
    with pytest.raises(UserError, match=r"LiteRT needs litert_torch: pip install"):
        export_litert(model, tmp_path / "net.tflite")
    assert not list(tmp_path.iterdir())
    save_model(model, tmp_path / "net.pt")
    argv = ["--weights", tmp_path / "net.pt", "--output", tmp_path / "net.tflite"]
    status, _, err = call(export.main, *argv)
    assert status == 2 and "needs litert_torch" in err and "minutes" not in err


class Once:
    """A function that is called once, and gives the same result ever after."""

    def __init__(self, function):
        self.function = function

    def __call__(self, *args):
        if not hasattr(self, "result"):
            self.result = self.function(*args)
        return self.result


@needs_litert
def test_litert(model, tmp_path):
    """All maps, their order, the metadata; float16 weights; LiteRT's own interpreter runs them."""
    from ai_edge_litert.interpreter import Interpreter

    path = tmp_path / "net.tflite"
    assert export_litert(model, path, sides=True) <= 1e-3
    archive = zipfile.ZipFile(path)
    about = json.loads(archive.read("about.json"))
    assert about["mean"] == [0.485, 0.456, 0.406] and about["img_size"] == 64
    assert archive.namelist() == ["about.json"]
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    assert list(interpreter.get_input_details()[0]["shape"]) == [1, 3, 64, 64]
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    run = interpreter.get_signature_runner()
    found = run(args_0=x.numpy())
    with torch.no_grad():
        expected = [m.sigmoid().numpy() for m in model.logits(x)]
    assert len(found) == len(expected) == 3
    for i, truth in enumerate(expected):
        assert np.abs(found[f"output_{i}"] - truth).max() <= 1e-3


@needs_litert
def test_litert_with_smaller_weights(model, tmp_path, monkeypatch):
    """float16 and int8 of one conversion, as each takes half a minute."""
    monkeypatch.setattr(litert, "_convert", Once(litert._convert))
    make_pairs(tmp_path / "images", tmp_path / "masks", "abcdefgh")
    export_litert(model, tmp_path / "half.tflite", half_weights=True)
    loss = export_litert_int8(model, tmp_path / "int8.tflite", tmp_path / "images", 0.1)
    assert 0 < loss.mean <= 0.1 and loss.calibrated == 0 and loss.measured
    with pytest.raises(UserError, match=r"allow_loss 1e-09: .* is not written"):
        export_litert_int8(model, tmp_path / "no.tflite", tmp_path / "images", 1e-9)
    assert not (tmp_path / "no.tflite").exists()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--output", "x.tflite", "--half"], "--half goes with --format onnx or coreml"),
        (["--output", "x.mlpackage", "--int8", "--calibrate", "x"], "--int8 goes with --format"),
        (["--output", "x.mlpackage", "--half-weights"], "--half-weights goes with"),
        (["--output", "x.tflite", "--format", "coreml"], "written to a .mlpackage"),
        (["--output", "x.tflite", "--img-size", "auto"], "--img-size auto: the file is for one"),
        (["--output", "x.mlpackage", "--img-size", "auto"], "--img-size auto: the file is for"),
        (["--output", "x.tflite", "--int8", "--calibrate", "x"], "--calibrate x: no such folder"),
        (["--output", "x.tflite", "--int8", "--calibrate", "."], "--calibrate .: holds 0 images"),
        (["--output", "mine.mlpackage"], "mine.mlpackage: exists, but is not a Core ML package"),
    ],
)
def test_flags_that_do_not_go_together(call, argv, named, tmp_path, nothing_there):
    """Told before packages are looked for, and before weights are loaded."""
    (tmp_path / "mine.mlpackage").mkdir()
    status, _, err = call(export.main, *argv)
    assert status == 2 and named in err.splitlines()[-1] and "Traceback" not in err
