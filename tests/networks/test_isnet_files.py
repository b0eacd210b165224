"""IS-Net through training, exports and ONNX files made elsewhere."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.data import SMALL, make_pairs, make_varied_network
from helpers.runs import rows, run
from onnx import numpy_helper
from torch.nn.modules.module import register_module_forward_pre_hook

import convert
import export
from src import (
    FULL,
    ISNET,
    ISNET_LITE,
    LITE,
    Predictor,
    U2Net,
    build_model,
    load_model,
    official,
    save_model,
)
from src.export.int8 import export_int8
from src.export.onnx import export_onnx
from src.export.torch_export import export_pt2
from src.weights.onnx import _Conv, _guess_table

NARROW = {
    **SMALL,
    "name": "narrow isnet",
    "encoder": [{**SMALL["encoder"][0], "in_ch": 8}, *SMALL["encoder"][1:]],
    "stem": {"in_ch": 3, "out_ch": 8},
    "fuse_sides": False,
    "mean": [0.5, 0.5, 0.5],
    "std": [1, 1, 1],
}


def pictures(batch, height, width):
    torch.manual_seed(batch)
    return torch.randn(batch, 3, height, width)


def answer(model, x):
    with torch.no_grad():
        return model.eval()(x).numpy()


def test_onnx_and_pt2(tmp_path):
    """Of any batch and size, odd ones too; the maps by their names, the mean and std beside."""
    model, path = make_varied_network(NARROW), tmp_path / "net.onnx"
    assert export_onnx(model, path, sides=True) <= 1e-4
    assert export_pt2(model, tmp_path / "net.pt2") <= 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["saliency", *model.map_names[1:]] and model.map_names[0] == "side1"
    program = torch.export.load(tmp_path / "net.pt2").module()
    for shape in ((1, 64, 64), (3, 45, 61)):
        x = pictures(*shape)
        assert np.abs(session.run(None, {"images": x.numpy()})[0] - answer(model, x)).max() < 1e-4
        assert np.abs(program(x)[0].numpy() - answer(model, x)).max() < 1e-4
    props = {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}
    assert props["mean"] == [0.5, 0.5, 0.5] and props["std"] == [1, 1, 1]
    again = load_model(path)
    assert again.config == build_model(NARROW, conv_bias=True).config and again.img_size == 96


def test_int8(tmp_path, monkeypatch):
    """Ranges are found on what the network reads, and the file's images are prepared alike."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_pairs(tmp_path / "images", tmp_path / "masks", [f"s{i:02}" for i in range(12)])
    model = make_varied_network(NARROW)
    model.sides[0].weight.data *= 5  # so that maps vary: images are grey before mean .5 and std 1
    export_int8(model, tmp_path / "net.onnx", tmp_path / "images", 0.5)
    image = tmp_path / "images/s05.jpg"
    exact, found = Predictor(model, device="cpu", amp="off"), Predictor(tmp_path / "net.onnx")
    assert np.abs(found(image) - exact(image)).mean() < 0.05
    other = build_model({**NARROW, "mean": [0.0] * 3}).eval()
    other.load_state_dict(model.state_dict())
    other.img_size = 96
    assert np.abs(Predictor(other, device="cpu", amp="off")(image) - exact(image)).mean() > 0.05


class Elsewhere(torch.nn.Module):
    """What removers distribute: float32 in and out, float16 within, six maps and six features."""

    def __init__(self, network, dtype):
        super().__init__()
        self.network, self.dtype = network.to(dtype), dtype

    def forward(self, x):
        maps, features = self.network(x.to(self.dtype))
        return tuple(y.float() for y in (*maps, *features))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_onnx_made_elsewhere(tmp_path, dtype):
    """The table is found by the shapes of convolutions, whose tensors have numbers for names."""

    class Lite(official.ISNetDIS):
        table = ISNET_LITE

    torch.manual_seed(0)
    network = Lite().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    x = pictures(1, 64, 64)
    with torch.no_grad():
        expected = network(x)[0][0]
    path = tmp_path / "general-use.onnx"
    torch.onnx.export(
        Elsewhere(network, dtype), (x,), path, dynamo=False, opset_version=15, input_names=["input"]
    )
    file = onnx.load(path)
    assert len(file.graph.output) == 12 and not file.metadata_props
    types = {numpy_helper.to_array(t).dtype for t in file.graph.initializer if len(t.dims) == 4}
    assert types == {np.dtype(str(dtype).removeprefix("torch."))}
    loaded = load_model(path)
    assert loaded.config == ISNET_LITE.replace(conv_bias=True) and loaded.img_size == 1024
    with torch.no_grad():
        assert (loaded(x) - expected).abs().max() < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("table", [FULL, LITE, ISNET, ISNET_LITE.replace(in_ch=4, out_ch=3)])
def test_table_of_convolutions(table):
    """Full and lite, of both kinds, by their first three convolutions."""
    with torch.device("meta"):
        network = build_model(table)
    convs = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    found = _guess_table([_Conv(np.empty(conv.weight.shape), None, None) for conv in convs])
    activation = "softmax" if table.out_ch > 1 else "sigmoid"
    assert found.replace(conv_bias=True) == table.replace(activation=activation, conv_bias=True)


def test_convert_to_official_names(call, tmp_path):
    network = build_model("isnet_lite").eval()
    save_model(network, tmp_path / "a.pt")
    status, said, err = call(convert.main, tmp_path / "a.pt", tmp_path / "b.pth", "--official")
    assert status == 0 and "trained at" not in said, err
    state = torch.load(tmp_path / "b.pth", weights_only=True)
    assert next(iter(state)) == "conv_in.weight" and "outconv.weight" not in state
    x = pictures(1, 64, 48)
    assert np.abs(answer(load_model(tmp_path / "b.pth"), x) - answer(network, x)).max() < 1e-5


def test_training(duts, tmp_path):
    """By its own mean and std, not ImageNet's; logs name the maps that there are."""
    table, seen = tmp_path / "narrow.json", []
    table.write_text(json.dumps(NARROW))

    def look(module, args):
        if isinstance(module, U2Net):
            seen.append((float(args[0].min()), float(args[0].max())))

    with register_module_forward_pre_hook(look):
        assert run(duts, tmp_path / "run", "--model", str(table)) == 0
    assert seen and all(-0.5 <= low < 0 < high <= 0.5 for low, high in seen)
    log = rows(tmp_path / "run")
    terms = [name for name in log[0] if name.startswith("loss_")]
    assert terms == ["loss_side1", "loss_side2"]
    assert float(log[-1]["loss"]) == pytest.approx(sum(float(log[-1][t]) for t in terms), rel=1e-4)
    model = load_model(tmp_path / "run/best.pt")
    assert model.config == build_model(NARROW).config and model.img_size == 48


def test_rembg(call, tmp_path):
    """Another session and size than U²-Net's; refused where no session prepares images alike."""
    model = make_varied_network(NARROW)
    save_model(model, tmp_path / "net.pt")
    argv = ["--preset", "rembg", "--output", tmp_path / "net.onnx", "--weights"]
    status, said, err = call(export.main, *argv, tmp_path / "net.pt")
    assert status == 0 and "dis_custom" in said and "96², but rembg runs it at 1024²" in said, err
    save_model(make_varied_network({**NARROW, "std": [1, 1, 2]}), tmp_path / "other.pt")
    status, _, err = call(export.main, *argv, tmp_path / "other.pt")
    assert status == 2 and "std (1.0, 1.0, 2.0)" in err
