"""Exports against the network itself, in the runtimes they are for."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.data import ROOT, SMALL, make_varied_network, same_state

import export
from src import UserError, build_model, load_model, save_model
from src.export.common import HALF_TOLERANCE, check_export, describe_network
from src.export.onnx import export_onnx
from src.export.torch_export import export_pt2


@pytest.fixture(scope="module")
def model():
    return make_varied_network(SMALL)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lite.pt"
    save_model(model, path)
    return path


def pictures(batch, height, width):
    torch.manual_seed(batch)
    return torch.randn(batch, 3, height, width)


def expected(model, x):
    with torch.no_grad():
        return [m.sigmoid().numpy() for m in model.logits(x)]


@pytest.mark.parametrize("maps", [3, 1])
def test_onnx(call, tmp_path, maps):
    """One file, any batch and size, the fused map first, and what a user needs to know in it."""
    model, path = make_varied_network(SMALL), tmp_path / "net.onnx"
    save_model(model, tmp_path / "net.pt")
    argv = ["--weights", tmp_path / "net.pt", "--output", path, *(["--sides"] if maps > 1 else [])]
    status, said, err = call(export.main, *argv)
    assert status == 0 and "MB" in said, err
    assert {p.name for p in tmp_path.iterdir()} == {"net.onnx", "net.pt"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert [o.name for o in session.get_outputs()] == ["saliency", "side1", "side2"][:maps]
    for shape in ((1, 64, 64), (4, 33, 70), (1, 320, 320)):
        x = pictures(*shape)
        for found, truth in zip(
            session.run(None, {"images": x.numpy()}), expected(model, x), strict=False
        ):
            assert np.abs(found - truth).max() <= 1e-4
    file = onnx.load(path)
    assert (file.ir_version, file.opset_import[0].version) == (8, 15), "for ONNX Runtime 1.9"
    axes = [v.type.tensor_type.shape.dim for v in (*file.graph.input, *file.graph.output)]
    assert {tuple(d[i].dim_param for i in (0, 2, 3)) for d in axes} == {
        ("batch", "height", "width")
    }
    assert str(ROOT).encode() not in path.read_bytes(), "a path of the machine that exported"
    props = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    assert props["img_size"] == 96 and props["network"] == model.config.name
    assert props["resampling"] == "bilinear" and props["antialias"] is True
    assert "resized to 96x96 by bilinear interpolation with antialias" in props["input"]
    assert props["mean"] == [0.485, 0.456, 0.406] and props["std"] == [0.229, 0.224, 0.225]


def test_the_map_of_the_object(call, tmp_path):
    """Which of several it is stands in the file; rembg would take the first."""
    for maps, index in ((2, 1), (3, None)):
        model = make_varied_network({**SMALL, "out_ch": maps, "activation": "softmax"})
        assert describe_network(model)["object_map"] == index
        save_model(model, tmp_path / "net.pt")
        argv = ["--weights", tmp_path / "net.pt", "--output", tmp_path / "net.onnx"]
        status, _, err = call(export.main, *argv, "--preset", "rembg")
        assert status == 2 and "rembg: is for one map" in err and f"{maps} maps" in err


def test_half_onnx(model, tmp_path):
    """16 bits inside, float32 outside; the difference is returned."""
    worst = export_onnx(model, tmp_path / "net.onnx", half=True)
    weights = onnx.load(tmp_path / "net.onnx").graph.initializer
    assert {onnx.TensorProto.FLOAT16} == {t.data_type for t in weights if len(t.dims) == 4}
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    x = pictures(2, 64, 96)
    found = session.run(None, {"images": x.numpy()})[0]
    assert found.dtype == np.float32 and 0 < worst <= HALF_TOLERANCE
    assert np.abs(found - expected(model, x)[0]).max() < 0.05


def test_half_weights_onnx(model, tmp_path):
    """Weights in 16 bits, arithmetic in float32: half the file, and closer than --half."""
    export_onnx(model, tmp_path / "float.onnx")
    worst = export_onnx(model, tmp_path / "net.onnx", half_weights=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("float.onnx", "net.onnx")]
    weights = [t for t in onnx.load(tmp_path / "net.onnx").graph.initializer if len(t.dims) == 4]
    assert {onnx.TensorProto.FLOAT16} == {t.data_type for t in weights}
    count = sum(int(np.prod(t.dims)) for t in weights)
    assert sizes[0] - sizes[1] > 2 * count - 120 * len(weights)  # of a node each that widens them
    x = pictures(2, 64, 96)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    found = session.run(None, {"images": x.numpy()})[0]
    assert found.dtype == np.float32 and 0 < worst <= HALF_TOLERANCE
    assert np.abs(found - expected(model, x)[0]).max() < 0.01
    with torch.inference_mode():  # it is a weights file too
        again = load_model(tmp_path / "net.onnx")(x).numpy()
    assert np.abs(found - again).max() < 1e-5


def test_pt2(call, model, weights, tmp_path):
    """torch alone reads it; it says what size the user has chosen."""
    path = tmp_path / "net.pt2"
    argv = ["--weights", weights, "--output", path, "--img-size", 64]
    assert call(export.main, *argv)[0] == 0
    extra = {"about.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["about.json"])["img_size"] == 64
    x = pictures(3, 50, 65)
    assert np.abs(program(x)[0].numpy() - expected(model, x)[0]).max() <= 1e-5


def test_several_maps(tmp_path):
    """A network of classes gives its softmax or sigmoid, as in eval mode."""
    model = build_model(SMALL, out_ch=3).eval()
    assert export_pt2(model, tmp_path / "net.pt2") <= 1e-4
    x = pictures(1, 64, 64)
    found = torch.export.load(tmp_path / "net.pt2").module()(x)[0]
    with torch.no_grad():
        assert torch.allclose(found, model(x), atol=1e-5)


def test_what_differs_is_not_kept(model, tmp_path, monkeypatch):
    load = torch.export.load

    def spoilt(path):
        run = load(path).module()
        return SimpleNamespace(module=lambda: lambda x: [m + 0.001 for m in run(x)])

    monkeypatch.setattr(torch.export, "load", spoilt)
    with pytest.raises(UserError, match="differs from the network"):
        export_pt2(model, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


class Same(torch.nn.Module):
    """As :class:`src.export.common.ExportedNetwork` of a network that does nothing."""

    network = SimpleNamespace(config=SimpleNamespace(in_ch=3), jumps=False)

    def forward(self, x):
        return (x,)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch, height, width: batch == 1,
        lambda batch, height, width: batch > 1,
        lambda batch, height, width: height % 2,
        lambda batch, height, width: height != width,
        lambda batch, height, width: height >= 320,
    ],
    ids=["one picture", "several", "odd sides", "not square", "large"],
)
def test_what_differs_for_some_inputs_alone(wrong):
    def run(x):
        return [x.numpy() + np.float32(0.001 * wrong(len(x), *x.shape[2:]))]

    assert check_export(Same(), lambda x: [x.numpy()], "x.pt2") == 0
    with pytest.raises(UserError, match=r"x\.pt2: differs from the network by 0\.001"):
        check_export(Same(), run, "x.pt2")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("share", [1, 1e-3])
def test_a_runtime_that_gives_no_numbers(value, share):
    """Everywhere or in a few pixels: no difference from NaN is larger than the tolerance."""

    def run(x):
        spoilt = np.random.default_rng(0).random(x.shape) < share
        return [np.where(spoilt, np.float32(value), x.numpy())]

    with pytest.raises(UserError, match=r"x\.pt2: .*maps that are not finite"):
        check_export(Same(), run, "x.pt2")


@pytest.mark.parametrize("write", [export_onnx, export_pt2])
def test_a_network_that_gives_no_numbers(tmp_path, write):
    """All its weights are finite, and each runtime gives the NaN that it gives."""
    model = make_varied_network(SMALL)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight *= 1e8
    with pytest.raises(UserError, match=r"net: not written: .*network's own maps are not finite"):
        write(model, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_the_network_stays_as_it_was(model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_pt2(model, tmp_path / "net.pt2")
    assert not model.fused and same_state(model.state_dict(), before)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--output", "x.txt"], "x.txt"),
        (["--output", "x.pt2", "--half"], "--half"),
        (["--output", "x.pt2", "--half-weights"], "--half-weights"),
        (["--output", "x.onnx", "--half-weights", "--half"], "--half-weights"),
        (["--output", "x.pt2", "--format", "onnx"], "--format"),
        (["--output", "x.onnx", "--weights", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_wrong_flags(call, argv, named):
    status, _, err = call(export.main, *argv)
    assert status == 2 and named in err and "Traceback" not in err
