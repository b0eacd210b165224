"""IS-Net and its GT encoder: tables, outputs of the official code, layouts, preprocessing."""

import json

import numpy as np
import pytest
import torch
from helpers.golden import SHARED, needs_shared
from PIL import Image

from src import (
    GT_ENCODER,
    ISNET,
    ISNET_LITE,
    LITE,
    Predictor,
    StemConfig,
    U2Net,
    U2NetConfig,
    UserError,
    build_model,
    load_model,
    official,
    save_model,
)
from src.weights.layouts import official_state, recognise

TABLES = {
    "isnet": (ISNET, official.ISNetDIS),
    "isnet_gt_encoder": (GT_ENCODER, official.ISNetGTEncoder),
}
SMALL_GT = GT_ENCODER.replace(in_ch=3)


def by_formula(name):
    """The weights that the golden outputs were made with, see golden/*_state_dict_shapes.json."""
    shapes = json.loads((SHARED / f"golden/{name}_state_dict_shapes.json").read_text())
    state = {}
    for k, (key, shape) in enumerate(shapes.items()):
        v = np.asarray(np.random.RandomState(k).standard_normal(shape))
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(1)
            continue
        if v.ndim == 4:
            v *= np.sqrt(1 / np.prod(shape[1:])) * (4 if key.startswith("side") else 1)
        elif key.endswith("running_var"):
            v = 1 + 0.1 * np.abs(v)
        else:
            v = 0.1 * v + key.endswith("weight")
        state[key] = torch.from_numpy(v.astype(np.float32))
    return state


def golden_input(name, size):
    channels = TABLES[name][0].in_ch
    x = np.random.RandomState(10000).standard_normal((1, channels, *size))
    return torch.from_numpy(x.astype(np.float32))


@needs_shared
@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(("size", "prefix"), [((96, 128), ""), ((101, 77), "odd_")])
@pytest.mark.parametrize("fused", [False, True])
def test_official_outputs(name, size, prefix, fused):
    """Maps and features of the official code, by our network and by the class of that name."""
    table, theirs = TABLES[name]
    golden, state = np.load(SHARED / f"golden/{name}.npz"), by_formula(name)
    kind, config, ours = recognise(state, name)
    assert kind.startswith("official") and config == table
    network = build_model(config).eval()
    network.load_state_dict(ours)
    network = network.fuse() if fused else network
    with torch.no_grad():
        maps, features = network.maps_and_features(golden_input(name, size))
        answer = network(golden_input(name, size))
    found = torch.cat(maps).sigmoid().numpy()
    assert np.abs(found - golden[prefix + "outputs"]).max() <= 1e-5
    assert np.abs(answer.numpy() - golden[prefix + "outputs"][:1]).max() <= 1e-5
    if not prefix:
        assert [list(f.shape) for f in features] == golden["feature_shapes"].tolist()
        for measure, key in ((torch.mean, "feature_means"), (torch.std, "feature_stds")):
            values = np.array([float(measure(f)) for f in features])
            np.testing.assert_allclose(values, golden[key], rtol=1e-3, atol=1e-4)
    if not fused:
        named = theirs().eval()
        assert list(named.state_dict()) == list(state)
        named.load_state_dict(state)
        with torch.no_grad():
            maps, same = named(golden_input(name, size))
        assert np.abs(torch.cat(maps).numpy() - golden[prefix + "outputs"]).max() <= 1e-5
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(same, features, strict=True))


@pytest.mark.parametrize(
    ("table", "count"), [(ISNET, 44_046_790), (GT_ENCODER, 6_877_734), (ISNET_LITE, 1_165_254)]
)
def test_parameter_counts(table, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build_model(table).parameters()) == count
    assert U2NetConfig.from_dict(json.loads(json.dumps(table.to_dict()))) == table


def test_old_tables_stay_as_they_are():
    """Not a key more in tables without IS-Net's parts, so that older versions read them too."""
    keys = {"name", "encoder", "decoder", "out_ch", "activation", "conv_bias"}
    assert set(LITE.to_dict()) == keys
    assert set(build_model("unet", width=4).config.to_dict()) == {
        "name", "in_ch", "out_ch", "activation", "width"
    }  # fmt: skip
    old = U2NetConfig.from_dict(LITE.to_dict())
    assert (old.stem, old.fuse_sides, old.img_size) == (None, True, 320)
    assert old.mean == (0.485, 0.456, 0.406) and old.std == (0.229, 0.224, 0.225)


BAD = {
    "stem does not fit": ({"stem": {"in_ch": 3, "out_ch": 32}}, ("En1", "64", "32", "stem")),
    "no stem for its channels": ({"stem": {"in_ch": 0, "out_ch": 64}}, ("stem", "in_ch")),
    "text for a truth value": (
        {"stem": {"in_ch": 3, "out_ch": 64, "norm": "no"}},
        ("stem", "norm", "true or false"),
    ),
    "unknown field": ({"stem": {"in_ch": 3, "out_ch": 64, "stride": 4}}, ("stem", "stride")),
    "a field is missing": ({"stem": {"in_ch": 3}}, ("stem", "out_ch")),
    "stem is a number": ({"stem": 64}, ("stem", "64")),
    "fuse_sides": ({"fuse_sides": 1}, ("isnet_lite", "fuse_sides", "true or false")),
    "mean of two": ({"mean": [0.5, 0.5]}, ("isnet_lite", "mean", "three numbers")),
    "mean of text": ({"mean": "0.5"}, ("mean", "three numbers")),
    "not finite": ({"mean": [0.5, 0.5, float("nan")]}, ("mean", "three numbers")),
    "std of zero": ({"std": [1, 0, 1]}, ("std", "above 0")),
    "img_size": ({"img_size": 0}, ("img_size", "from 1 to 8192")),
    "an encoder and half a decoder": (
        {"decoder": ISNET_LITE.to_dict()["decoder"][:3]},
        ("6", "5", "3"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_table_says_what_is_wrong(case):
    changes, words = BAD[case]
    with pytest.raises(UserError) as error:
        U2NetConfig.from_dict(ISNET_LITE.to_dict() | changes)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_in_ch_is_that_of_the_stem():
    config = ISNET_LITE.replace(in_ch=4, stem=StemConfig(3, 64, norm=True))
    assert config.in_ch == 4 and config.encoder == ISNET_LITE.encoder
    assert build_model(config).eval()(torch.randn(1, 4, 33, 40)).shape == (1, 1, 33, 40)


def test_encoder_alone_trains():
    network = build_model(SMALL_GT.replace(fuse_sides=True)).train()
    assert network.map_names == ["fused", *(f"side{i}" for i in range(1, 7))]
    assert len(network(torch.randn(2, 3, 64, 64))) == network.num_maps == 7


def test_features_beside_the_maps():
    """Of the sizes that IS-Net's supervision compares: decoder stages 1 to 5, encoder stage 6."""
    network = build_model("isnet_lite").train()
    maps, features = network.maps_and_features(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 1, 64, 96)] * 6
    sizes = [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert [tuple(f.shape) for f in features] == [(2, 64, *size) for size in sizes]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_preprocessing_travels_with_weights(suffix, tmp_path):
    """Mean, std and size of IS-Net, in every kind of file; a predictor uses them."""
    network = build_model("isnet_lite", mean=(0.1, 0.2, 0.3), std=(2, 0.5, 1)).eval()
    path = tmp_path / f"net{suffix}"
    if suffix:
        save_model(network, path)
    else:
        network.save_pretrained(path)
    loaded = load_model(path)
    assert loaded.config == network.config and loaded.img_size == 1024
    pixel = Image.new("RGB", (64, 64), (255, 0, 51))
    x = torch.tensor([(1 - 0.1) / 2, (0 - 0.2) / 0.5, (0.2 - 0.3) / 1]).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = network(x.expand(1, 3, 64, 64).contiguous())[0, 0]
    found = Predictor(loaded, 64, "cpu", "off").map(pixel)
    assert np.abs(found - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("table", [ISNET_LITE, ISNET_LITE.replace(conv_bias=True, out_ch=3)])
def test_official_layout_out_and_in(table, tmp_path):
    """The table is read off the tensors; 1024² and mean .5 are known of such weights."""
    network = build_model(table).eval()
    torch.save(official_state(network), tmp_path / "net.pth")
    loaded = load_model(tmp_path / "net.pth")
    assert loaded.config.structure == table.replace(conv_bias=True).structure
    assert loaded.img_size == 1024 and loaded.config.mean == (0.5, 0.5, 0.5)
    x = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        assert torch.allclose(loaded.logits(x)[0], network.logits(x)[0], atol=1e-5)


def test_official_classes_save_and_load(tmp_path):
    network = official.ISNetGTEncoder().eval()
    network.save_pretrained(tmp_path / "gt")
    x = torch.rand(1, 1, 64, 64)
    (maps, _), again = network(x), official.ISNetGTEncoder.from_pretrained(tmp_path / "gt")
    assert torch.equal(again(x)[0][0], maps[0])
    assert torch.equal(U2Net.from_pretrained(tmp_path / "gt")(x), maps[0])
    with pytest.raises(UserError, match="holds isnet_gt_encoder, not ISNetDIS"):
        official.ISNetDIS.from_pretrained(tmp_path / "gt")
