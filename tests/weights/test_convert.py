"""Weights from kind to kind: files, folders, ONNX, and the Hub's way."""

import itertools
import json

import onnx
import pytest
import torch
from helpers.data import SMALL, make_varied_network, same_state

import convert
from src import SegNet, U2Net, UserError, build_model, load_model, official, save_model
from src.export.onnx import export_onnx


@pytest.fixture(scope="module")
def model():
    return make_varied_network()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    export_onnx(make_varied_network(SMALL), path, half=True)
    return path


def near(first, second):
    torch.manual_seed(1)
    picture = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        return torch.allclose(first(picture), second(picture), atol=1e-5)


def test_from_kind_to_kind(call, model, tmp_path):
    """Checkpoint → safetensors → folder → checkpoint, bit for bit, with the size trained at."""
    folders = ("folder", "v1.2", "with.dot/")
    names = [f"{tmp_path}/{name}" for name in ("a.pt", "b.safetensors", *folders, "d.pth")]
    save_model(model, names[0])
    for before, after in itertools.pairwise(names):
        status, said, err = call(convert.main, before, after)
        assert status == 0 and "u2net_lite" in said and " MB" in said, err
        again = load_model(after)
        assert same_state(again.state_dict(), model.state_dict()) and again.img_size == 96


def test_official_out_and_half(call, model, tmp_path):
    """Their code loads what comes out, with biases that it expects and ours lacks."""
    save_model(model, tmp_path / "a.pt")
    status, said, _ = call(convert.main, tmp_path / "a.pt", tmp_path / "b.pth", "--official")
    assert status == 0
    state = torch.load(tmp_path / "b.pth", weights_only=True)
    assert "trained at 96²" in said
    theirs = official.U2NETP()
    assert not any(theirs.load_state_dict(state))
    assert near(lambda x: theirs.eval()(x)[0], model)
    assert call(convert.main, tmp_path / "a.pt", tmp_path / "c.safetensors", "--half")[0] == 0
    assert (tmp_path / "c.safetensors").stat().st_size < 0.6 * (tmp_path / "a.pt").stat().st_size


def test_what_the_official_layout_loses_is_said(call, tmp_path):
    """And nothing else; the class of that name keeps it."""
    changes = {"img_size": 768, "mean": (0.5,) * 3, "std": (0.5,) * 3, "out_ch": 2}
    network = build_model("u2net_lite", **changes)
    save_model(network, tmp_path / "a.pt")
    argv = [tmp_path / "a.pt", tmp_path / "b.pth", "--official"]
    _, said, _ = call(convert.main, *argv)
    for words in ("trained at 768²", "mean 0.5, 0.5, 0.5:", "std 0.5, 0.5, 0.5:", "sigmoid:"):
        assert words in said
    save_model(build_model("u2net_lite"), tmp_path / "a.pt")
    assert "cannot hold" not in call(convert.main, *argv)[1]
    network.save_pretrained(tmp_path / "folder")
    theirs = official.U2NETP.from_pretrained(tmp_path / "folder")
    assert theirs.config == theirs.plain().config == network.config.replace(conv_bias=True)
    assert theirs.img_size == 768


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["a.pt", "b.onnx"], "export.py"),
        (["a.pt", "with.dot"], "with / behind its name"),
        (["a.pt", "folder", "--official"], "--official"),
        (["a.pt", "a.pt"], "a.pt: no such weights file"),
        (["nowhere.pt", "b.pt"], "nowhere.pt"),
    ],
)
def test_wrong_flags(call, tmp_path, monkeypatch, argv, named):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(convert.main, *argv)
    assert status == 2 and named in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_other_tables_have_no_official_names(call, tmp_path):
    save_model(build_model("u2net_lite", out_ch=2), tmp_path / "a.pt")
    assert call(convert.main, tmp_path / "a.pt", tmp_path / "b.pth", "--official")[0] == 0
    save_model(build_model(SMALL), tmp_path / "c.pt")
    status, _, err = call(convert.main, tmp_path / "c.pt", tmp_path / "d.pth", "--official")
    assert status == 2 and "only for full and lite" in err


# ONNX in


def test_onnx_in(exported):
    """Of any table: the metadata tell it; 16 bits are widened."""
    again = load_model(exported)
    assert again.origin == "ONNX file, small, 1 map" and again.img_size == 96
    assert again.config == build_model(SMALL, conv_bias=True).config
    torch.manual_seed(1)
    picture = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.allclose(again(picture), make_varied_network(SMALL)(picture), atol=0.02)


def export_elsewhere(path, folded=True):
    """The official code's network and its seven maps, by torch's old exporter, of a fixed size;
    returns the network."""
    torch.manual_seed(0)
    theirs = official.U2NETP().eval()
    theirs.load_state_dict(
        {k: torch.rand_like(v) * 0.1 if v.ndim == 1 else v for k, v in theirs.state_dict().items()}
    )
    torch.onnx.export(
        theirs, (torch.zeros(1, 3, 64, 64),), path, dynamo=False,
        do_constant_folding=folded, opset_version=17, input_names=["input.1"],
        training=torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE,
    )  # fmt: skip
    return theirs


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("folded", [True, False])
def test_onnx_made_elsewhere(tmp_path, folded):
    """Batch norm folded or not."""
    theirs = export_elsewhere(tmp_path / "a.onnx", folded)
    kinds = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert ("BatchNormalization" in kinds) is not folded
    assert near(load_model(tmp_path / "a.onnx"), lambda x: theirs(x)[0])


ONE_NUMBER = onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1])


def widen(graph):
    convs = [n for n in graph.node if n.op_type == "Conv"]
    weight = next(t for t in graph.initializer if t.name == convs[4].input[1])
    weight.dims[:] = [weight.dims[0] * 3, weight.dims[1], 3, 1]


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda graph: graph.node.reverse(), "convolution 1 is|cannot run it"),
        (widen, "convolution 5 is"),
        (lambda graph: graph.ClearField("node"), "holds no convolution"),
        (lambda graph: graph.input.add().CopyFrom(ONE_NUMBER), "something else than one batch"),
    ],
)
def test_onnx_that_does_not_fit(exported, tmp_path, edit, named):
    file = onnx.load(exported)
    edit(file.graph)
    onnx.save(file, tmp_path / "b.onnx")
    with pytest.raises(UserError, match=named):
        load_model(tmp_path / "b.onnx")


@pytest.mark.parametrize("change", [("Sigmoid", "Tanh"), ("Add", "Sub")])
def test_onnx_that_computes_something_else(exported, tmp_path, change):
    """The right convolutions, and one other step wrong."""
    file = onnx.load(exported)
    [n for n in file.graph.node if n.op_type == change[0]][-1].op_type = change[1]
    onnx.save(file, tmp_path / "b.onnx")
    with pytest.raises(UserError, match="computes another first map"):
        load_model(tmp_path / "b.onnx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_with_metadata_of_others(tmp_path):
    """Names that we use too, with something else behind them."""
    export_elsewhere(tmp_path / "a.onnx")
    for about in ({"config": '"lite"', "img_size": '"big"'}, {"config": "x: y"}):
        file = onnx.load(tmp_path / "a.onnx")
        del file.metadata_props[:]
        onnx.helper.set_model_props(file, about)
        onnx.save(file, tmp_path / "a.onnx")
        assert load_model(tmp_path / "a.onnx").img_size == 320


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("raw", [False, True])
def test_onnx_of_several_maps(tmp_path, raw):
    """Without our metadata, as probabilities or as the logits before them, of a batch of two."""
    model = make_varied_network("u2net_lite", out_ch=3, activation="softmax")

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            maps = self.model.logits(x)[0]
            return maps if raw else maps.softmax(1)

    example = (torch.randn(2, 3, 64, 64),)
    torch.onnx.export(Other().eval(), example, tmp_path / "a.onnx", dynamo=False)
    loaded = load_model(tmp_path / "a.onnx")
    assert loaded.config.out_ch == 3 and loaded.config.activation == "softmax"
    assert near(loaded, model)


@pytest.mark.parametrize("content", [b"", b"not a file of protobuf", None])
def test_onnx_torn_or_missing(tmp_path, exported, content):
    path = tmp_path / "a.onnx"
    if content is not None:
        path.write_bytes(content or exported.read_bytes()[: exported.stat().st_size // 2])
    with pytest.raises(UserError, match=r"a\.onnx"):
        load_model(path)


# Folders and the Hub


def test_pretrained_folder(model, tmp_path):
    """What the mixin writes: safetensors, config.json, a card; read by class and by name."""
    model.save_pretrained(tmp_path / "net")
    names = {path.name for path in (tmp_path / "net").iterdir()}
    for_transformers = {"modeling_u2net.py", "preprocessor_config.json"}
    assert names == {"README.md", "config.json", "model.safetensors"} | for_transformers
    assert json.loads((tmp_path / "net/config.json").read_text())["img_size"] == 96
    assert "from_pretrained" in (tmp_path / "net/README.md").read_text()
    assert load_model(tmp_path / "net").origin.startswith("folder of save_pretrained")
    for again in (U2Net.from_pretrained(tmp_path / "net"), load_model(tmp_path / "net")):
        assert same_state(again.state_dict(), model.state_dict()) and again.img_size == 96
        assert not again.training


def test_pretrained_folder_of_another_network(tmp_path):
    """Its card says by which class to load it, and U2Net says that it is none."""
    segnet = build_model("segnet", width=8)
    segnet.save_pretrained(tmp_path)
    assert "SegNet.from_pretrained" in (tmp_path / "README.md").read_text()
    assert same_state(SegNet.from_pretrained(tmp_path).state_dict(), segnet.state_dict())
    with pytest.raises(UserError, match=f"{tmp_path.name}: holds no U2Net"):
        U2Net.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["best.pt", "last.pt"])
def test_the_folder_of_a_run(tmp_path, file):
    """By the moving average, which was scored; whatever layout the weights have."""
    raw, average = (make_varied_network(SMALL, out_ch=1) for _ in range(2))
    raw.sides[0].bias.data += 1
    save_model(raw, tmp_path / file, ema=average.state_dict())
    for again in (U2Net.from_pretrained(tmp_path), load_model(tmp_path)):
        assert same_state(again.state_dict(), average.state_dict())
    lite = make_varied_network()
    torch.save(lite.state_dict(), tmp_path / file)
    assert same_state(U2Net.from_pretrained(tmp_path).state_dict(), lite.state_dict())


@pytest.mark.parametrize("output", ["last.pt", "last-1.pt", "best.pt", ""])
def test_a_run_is_not_replaced(call, model, tmp_path, output):
    """Neither its files, nor its folder by another that would be read in its place."""
    save_model(model, tmp_path / "own.pt")
    for name in ("last.pt", "best.pt"):
        (tmp_path / name).write_text("as it was")
    status, _, told = call(convert.main, tmp_path / "own.pt", tmp_path / output)
    assert status == 2 and "choose another OUTPUT" in told and str(tmp_path) in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt", "own.pt"]
    assert (tmp_path / "best.pt").read_text() == (tmp_path / "last.pt").read_text() == "as it was"
    if output:
        (tmp_path / "link.pt").symlink_to(tmp_path / output)
        status, _, told = call(convert.main, tmp_path / "own.pt", tmp_path / "link.pt")
        assert status == 2 and "belongs to the run" in told
    assert call(convert.main, tmp_path / "own.pt", tmp_path / "lite.pt")[0] == 0


def change_size(path, value):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"img_size": value}))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), '"config"'),
        (lambda folder: change_size(folder / "config.json", "64"), "img_size is '64'"),
        (lambda folder: change_size(folder / "config.json", 0), "img_size is 0"),
        (lambda folder: (folder / "model.safetensors").write_text("x"), "is text, not a weights"),
    ],
)
def test_spoilt_folder(model, tmp_path, spoil, named):
    model.save_pretrained(tmp_path)
    spoil(tmp_path)
    for read in (load_model, U2Net.from_pretrained):
        with pytest.raises(UserError, match=named):
            read(tmp_path)


def test_from_the_hub(model, tmp_path, monkeypatch):
    """An id is handed to huggingface_hub with what the caller asks; its folder is then read."""
    model.save_pretrained(tmp_path)
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    again = U2Net.from_pretrained("owner/lite", revision="v1")
    assert same_state(again.state_dict(), model.state_dict())
    assert asked["name"] == "owner/lite" and asked["revision"] == "v1"
    assert set(asked["allow_patterns"]) == {"config.json", "model.safetensors"}


def test_nothing_on_the_hub(tmp_path):
    for name in ("owner/nothing", "no/such/folder"):
        with pytest.raises(
            UserError, match="no such folder, and not found on the Hugging Face Hub"
        ):
            U2Net.from_pretrained(name, local_files_only=True, cache_dir=tmp_path)
