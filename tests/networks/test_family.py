"""The networks beside U²-Net: what their papers say of them, and their backbones."""

import shutil

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import torchvision

from src import UserError, build_model
from src.export.onnx import export_onnx
from src.weights.backbone import load_backbone

FAMILY = ("unet", "unet_bn", "fcn8s", "segnet")


def narrow(name, **options):
    torch.manual_seed(0)
    return build_model({"name": name, "width": 8, **options}).eval()


def test_unet_of_the_paper():
    """Figure 1: 572² → 388², and what it names on the way."""
    with torch.device("meta"):  # shapes alone
        network = build_model("unet", in_ch=1, out_ch=2).train()
    sizes = []
    for block in (*network.encoder, *network.decoder):
        block.register_forward_hook(lambda m, args, out: sizes.append(tuple(out.shape[1:3])))
    maps = network(torch.zeros(1, 1, 572, 572, device="meta"))
    assert [tuple(m.shape) for m in maps] == [(1, 2, 388, 388)]
    contracting = [(64, 568), (128, 280), (256, 136), (512, 64), (1024, 28)]
    assert sizes == [*contracting, (512, 52), (256, 100), (128, 196), (64, 388)]


@pytest.mark.parametrize(("side", "seen"), [(188, 4), (200, 20), (204, 20), (205, 36), (60, 4)])
def test_unet_trains_on_the_centre(side, seen):
    """As much as poolings of even maps leave of it."""
    with torch.no_grad():
        assert narrow("unet").train()(torch.rand(1, 3, side, 188))[0].shape == (1, 1, seen, 4)


@pytest.mark.parametrize("side", [132, 164, 165])
def test_unet_is_not_shifted(side):
    """What training mode gives is what eval mode gives for the centre; these sides put the same
    pixels together in the poolings of both.
    """
    network = narrow("unet")
    picture = torch.rand(1, 3, side, side)
    with torch.no_grad():
        whole = network.logits(picture)[0]
        network.train().dropout.eval()
        centre = network.logits(picture)[0]
    first = (side - 4) // 2
    off = [
        (centre - whole[..., top : top + 4, left : left + 4]).abs().max()
        for top, left in ((first, first), (first + 1, first), (first, first - 1))
    ]
    assert off[0] < 1e-4 < min(off[1:])


@pytest.mark.parametrize("size", [(200, 150), (33, 40)])
def test_unet_mirrors_the_border(size):
    """As numpy mirrors it, also where the border is wider than the picture."""
    from src.networks.unet import _mirror

    picture = torch.rand(1, 3, *size)
    mirrored = _mirror(_mirror(picture, 2, True), 3, True)
    after = [m - s - 92 for m, s in zip(mirrored.shape[-2:], size, strict=True)]
    pads = [(0, 0), (0, 0), *((92, end) for end in after)]
    assert np.array_equal(mirrored.numpy(), np.pad(picture.numpy(), pads, mode="reflect"))
    assert all(end >= 92 for end in after) and all((m - 12) % 16 == 0 for m in mirrored.shape[-2:])


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed here")
def test_unet_compiles_at_one_size():
    """As an AOTInductor package does; inductor takes no absolute value in indices for whole."""
    from src.networks.unet import _mirror

    picture = torch.rand(1, 1, 40, 5)
    compiled = torch.compile(lambda x: _mirror(x, 2, True), dynamic=False)
    assert torch.equal(compiled(picture), _mirror(picture, 2, True))


def test_fcn_doubles_bilinearly():
    """The transposed convolutions start as bilinear resizing, away from the border."""
    network = narrow("fcn8s", out_ch=3)
    x = torch.randn(1, 3, 9, 7)
    expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    found = network.doubling[0](x)
    assert torch.allclose(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], atol=1e-6)


def test_segnet_puts_maxima_back():
    """The first map of the decoder has the encoder's values where its maxima were, else 0."""
    network = narrow("segnet")
    seen = {}
    network.encoder[-1].register_forward_hook(lambda m, args, out: seen.update(encoded=out))
    network.decoder[0].register_forward_pre_hook(lambda m, args: seen.update(decoded=args[0]))
    with torch.no_grad():
        network(torch.randn(2, 3, 70, 64))
    encoded, decoded = seen["encoded"], seen["decoded"]
    places = decoded != 0
    assert decoded.shape == encoded.shape and torch.equal(decoded[places], encoded[places])
    assert torch.equal(
        F.max_pool2d(decoded, 2, ceil_mode=True), F.max_pool2d(encoded, 2, ceil_mode=True)
    )
    assert F.avg_pool2d(places.float(), 2, ceil_mode=True, count_include_pad=False).max() <= 0.5


def vgg(name, **options):
    torch.manual_seed(1)
    return getattr(torchvision.models, name)(weights=None, **options).eval()


@pytest.mark.parametrize(("name", "kind"), [("fcn8s", "vgg16"), ("segnet", "vgg16_bn")])
def test_backbone_from_a_file(name, kind, tmp_path):
    """The features of torchvision's own network come out, before its last pooling."""
    source = vgg(kind)
    state = source.state_dict()
    features = {key: value for key, value in state.items() if key.startswith("features.")}
    torch.save(features, tmp_path / "vgg.pth")
    network = build_model(name if name == "segnet" else {"name": name}).eval()
    load_backbone(network, tmp_path / "vgg.pth")
    x = torch.randn(1, 3, 64, 96)
    stages = network.encoder if name == "segnet" else network.stages
    y = x
    with torch.no_grad():
        for i, stage in enumerate(stages):
            y = stage(F.max_pool2d(y, 2) if i else y)
        assert torch.allclose(y, source.features[:-1](x), atol=1e-5)


def test_fcn_takes_the_classifier_too(tmp_path):
    """fc6 and fc7 as convolutions give on one 7×7 map what the fully connected layers give."""
    network = narrow("fcn8s")
    head = torch.nn.Sequential(
        torch.nn.Linear(64 * 49, 512), torch.nn.ReLU(), torch.nn.Linear(512, 512)
    )
    names = {"classifier.0": head[0], "classifier.3": head[2]}
    state = {f"{k}.{n}": v for k, layer in names.items() for n, v in layer.state_dict().items()}
    for i, conv in enumerate(m for m in network.stages.modules() if hasattr(m, "kernel_size")):
        state |= {f"features.{3 * i}.{n}": v for n, v in conv.state_dict().items()}
    torch.save(state, tmp_path / "vgg.pth")
    load_backbone(network, tmp_path / "vgg.pth")
    x = torch.randn(1, 64, 7, 7)
    with torch.no_grad():
        found = network.fc(x)[..., 3, 3]  # where the 7×7 window covers the map
        assert torch.allclose(found, head(x.flatten(1)).relu(), atol=1e-5)


def test_backbones_that_do_not_fit(tmp_path):
    torch.save({"features.0.weight": torch.zeros(8, 3, 3, 3)}, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"short\.pth: features\.0\.bias is missing"):
        load_backbone(narrow("segnet"), tmp_path / "short.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "wide.pth")
    with pytest.raises(UserError, match=r"is of shape \[64, 3, 3, 3\].*fcn8s has \[8, 3, 3, 3\]"):
        load_backbone(narrow("fcn8s"), tmp_path / "wide.pth")
    with pytest.raises(UserError, match="unet has none; fcn8s and segnet do"):
        load_backbone(narrow("unet"), tmp_path / "wide.pth")


def test_backbone_without_a_network(monkeypatch):
    """No connection: the address to fetch it from elsewhere is named."""

    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(UserError, match=r"no route.*https://.*vgg16_bn.*\.pth"):
        load_backbone(narrow("segnet"), "imagenet")


@pytest.mark.parametrize("name", FAMILY)
def test_onnx_gives_the_same(name, tmp_path, caplog):
    """In onnxruntime, at a size and a batch that neither export nor its own check has seen; the
    exporter has nothing to say of it."""
    network = narrow(name, out_ch=3, activation="softmax")
    export_onnx(network, tmp_path / "net.onnx")
    assert [record.name for record in caplog.records if record.levelname == "WARNING"] == []
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    x = torch.randn(3, 3, 75, 52)
    found = session.run(None, {"images": x.numpy()})[0]
    with torch.no_grad():
        assert np.abs(found - network(x).numpy()).max() <= 1e-4


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"name": "unet", "width": 0}, "width"),
        ({"name": "segnet", "out_ch": "3"}, "out_ch"),
        ({"name": "fcn8s", "activation": "tanh"}, "tanh"),
        ({"name": "unet_bn", "wdith": 8}, "wdith"),
    ],
)
def test_wrong_options_are_named(table, named):
    with pytest.raises(UserError, match=named):
        build_model(table)
