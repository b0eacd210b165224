"""ONNX for runtimes that take one size or old operators: OpenCV's dnn and ONNX Runtime, against
the network."""

import sys

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.data import SMALL, make_scene, make_varied_network, save_image
from PIL import Image

import export
import predict
from src import Predictor, UserError, save_model
from src.export.onnx import check_opset, export_onnx
from src.pictures.images import open_image


@pytest.fixture(scope="module")
def model():
    network = make_varied_network(SMALL)
    network.img_size = 64
    return network


def test_static_in_opencv(call, model, tmp_path):
    """One size in the graph, no operator that computes sizes, and OpenCV's maps are the network's;
    predict.py takes the file for weights."""
    save_model(model, tmp_path / "net.pt")
    path = tmp_path / "net.onnx"
    argv = ["--weights", tmp_path / "net.pt", "--output", path, "--static", "--opset", 11]
    status, _, err = call(export.main, *argv)
    assert status == 0, err
    file = onnx.load(path)
    assert file.opset_import[0].version == 11
    shape = [d.dim_value for d in file.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, 64, 64]
    assert not {"Shape", "Gather", "Slice"} & {node.op_type for node in file.graph.node}
    network = cv2.dnn.readNetFromONNX(str(path))
    torch.manual_seed(0)
    for x in torch.randn(2, 1, 3, 64, 64):
        with torch.no_grad():
            expected = model.logits(x)[0].sigmoid().numpy()
        network.setInput(x.numpy())
        assert expected.std() > 0.01 and np.abs(network.forward() - expected).max() <= 1e-3
    image = save_image(tmp_path / "a.png", make_scene(1)[0])
    masks = []
    for weights in (path, tmp_path / "net.pt"):
        argv = [image, "--weights", weights, "--output", tmp_path / "m.png", "--amp", "off"]
        assert call(predict.main, *argv, "--device", "cpu")[0] == 0
        masks.append(np.asarray(Image.open(tmp_path / "m.png")).astype(int))
    assert np.ptp(masks[1]) > 10 and np.abs(masks[0] - masks[1]).max() <= 1


def test_static_rectangle_in_half(model, tmp_path):
    """With the size that the user gives, and in float16."""
    network = model.plain()
    network.img_size, network.input_size = 64, "96x64"
    assert export_onnx(network, tmp_path / "net.onnx", half=True, static=True) <= 0.02
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert session.get_inputs()[0].shape == [1, 3, 64, 96]
    network.input_size = "auto"
    with pytest.raises(UserError, match="img_size auto: the file is for one size"):
        export_onnx(network, tmp_path / "net.onnx", static=True)


def test_static_int8(call, model, tmp_path):
    """One size, integers of opset 13; onnxruntime's maps of it are near the network's, and
    predict.py takes it at that size alone."""
    save_model(model, tmp_path / "net.pt")
    images = [save_image(tmp_path / f"photos/{i}.png", make_scene(i, 90, 70)[0]) for i in range(6)]
    path = tmp_path / "net.onnx"
    argv = ["--weights", tmp_path / "net.pt", "--output", path, "--static", "--opset", 13, "--int8"]
    more = ["--calibrate", tmp_path / "photos", "--allow-loss", 0.1]
    status, said, err = call(export.main, *argv, *more)
    assert status == 0 and "change by" in said, err
    file = onnx.load(path)
    kinds = {node.op_type for node in file.graph.node}
    assert file.opset_import[0].version == 13 and "QuantizeLinear" in kinds and "Shape" not in kinds
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == [1, 3, 64, 64]
    predictor = Predictor(model, device="cpu", amp="off")
    x = predictor.preset.normalize(
        predictor.prepare(open_image(images[0]))[None], torch.float32, model.config
    )
    with torch.no_grad():
        expected = model.logits(x)[0].sigmoid().numpy()
    (found,) = session.run(None, {"images": x.numpy()})
    assert expected.std() > 0.01 and np.abs(found - expected).mean() < 0.1 * expected.std()
    argv = [images[0], "--weights", path, "--output", tmp_path / "m.png"]
    assert call(predict.main, *argv)[0] == 0
    assert np.ptp(np.asarray(Image.open(tmp_path / "m.png"))) > 10
    status, _, err = call(predict.main, *argv, "--img-size", 96)
    assert status == 2 and "64" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("opset", [10, 99])
def test_opsets_that_cannot_be(model, tmp_path, opset, monkeypatch):
    """Told at once, not after a minute of tracing."""
    monkeypatch.setattr("src.export.onnx.trace", lambda *_: pytest.fail("traced"))
    with pytest.raises(UserError, match=rf"opset {opset}: must be from 11 to \d+"):
        export_onnx(model, tmp_path / "net.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_other_formats_need_no_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    check_opset(None)
    with pytest.raises(UserError, match="export to ONNX needs onnx: pip install onnx"):
        check_opset(12)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--output", "x.pt2", "--static"], "--static goes with --format onnx"),
        (["--output", "x.tflite", "--opset", "12"], "--opset goes with --format onnx"),
        (["--output", "x.onnx", "--opset", "0"], "--opset"),
        (["--output", "x.onnx", "--allow-loss", "0"], "--allow-loss goes with --int8"),
        (["--output", "x.onnx", "--opset", "10"], "--opset 10: must be from 11 to"),
        (["--output", "x.onnx", "--static", "--img-size", "auto"], "--img-size auto: the file is"),
        (["--output", "x.onnx", "--preset", "rembg", "--img-size", "64x32"], "--img-size 64x32:"),
        (["--output", "x.onnx", "--int8", "--calibrate", "x"], "--calibrate x: no such folder"),
        (["--output", "x.pt2", "--format", "aoti", "--img-size", "auto"], "--img-size auto: the"),
        (["--output", "x.onnx", "--static", "--preset", "rembg"], "do not go together"),
        (["--output", "x.onnx", "--opset", "12", "--int8", "--calibrate", "x"], "at least 13"),
    ],
)
def test_flags_that_do_not_go_together(call, argv, named, nothing_there):
    """Told before packages are looked for, and before weights are loaded."""
    status, _, err = call(export.main, *argv)
    assert status == 2 and named in err.splitlines()[-1] and "Traceback" not in err
