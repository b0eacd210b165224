"""Weights under other code's names: the tutorials' network written down here, prefixes, the
official repository's class names."""

import pytest
import torch
import torch.nn.functional as F
from helpers.data import make_varied_network, same_state
from torch import nn

import convert
from src import (
    FULL,
    LITE,
    Predictor,
    U2Net,
    UserError,
    build_model,
    load_model,
    official,
    save_model,
)  # fmt: skip
from src.weights.layouts import from_official, to_official


class Block(nn.Module):
    def __init__(self, i, o, dilation=1, bias=False):
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, padding=dilation, dilation=dilation, bias=bias)
        self.bn = nn.BatchNorm2d(o)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


def fit(x, ref):
    return F.interpolate(x, ref.shape[2:], mode="bilinear", align_corners=False)


class TutorialRSU(nn.Module):
    """Blocks in lists under the tutorials' names; written for this test, from the paper."""

    def __init__(self, height, i, mid, o, dilated, bias):
        super().__init__()
        self.dilated = dilated
        rates = [2**k if dilated else 1 for k in range(height)]
        rates[-1] = 8 if dilated else 2
        self.conv_in = Block(i, o, bias=bias)
        self.encode_modules = nn.ModuleList(
            Block(mid if k else o, mid, rate, bias) for k, rate in enumerate(rates)
        )
        self.decode_modules = nn.ModuleList(
            Block(2 * mid, mid if k else o, rates[k], bias) for k in range(height - 2, -1, -1)
        )

    def forward(self, x):
        x = whole = self.conv_in(x)
        kept = []
        *down, bottom = self.encode_modules
        for k, block in enumerate(down):
            x = block(x if k == 0 or self.dilated else F.max_pool2d(x, 2, ceil_mode=True))
            kept.append(x)
        x = bottom(x)
        for block in self.decode_modules:
            skip = kept.pop()
            x = block(torch.cat([x if x.shape == skip.shape else fit(x, skip), skip], dim=1))
        return x + whole


class TutorialNet(nn.Module):
    def __init__(self, table, bias):
        super().__init__()

        def blocks(stages):
            return nn.ModuleList(
                TutorialRSU(s.height, s.in_ch, s.mid_ch, s.out_ch, s.dilated, bias) for s in stages
            )

        self.encode_modules, self.decode_modules = blocks(table.encoder), blocks(table.decoder)
        sides = [s for s in (*table.encoder, *table.decoder) if s.side]
        self.side_modules = nn.ModuleList(nn.Conv2d(s.out_ch, 1, 3, padding=1) for s in sides)
        self.out_conv = nn.Conv2d(len(sides), 1, 1)

    def forward(self, picture):
        x, kept = picture, []
        for k, stage in enumerate(self.encode_modules):
            x = stage(F.max_pool2d(x, 2, ceil_mode=True) if k else x)
            kept.append(x)
        outputs = [kept.pop()]
        for stage in self.decode_modules:
            skip = kept.pop()
            outputs.append(stage(torch.cat([fit(outputs[-1], skip), skip], dim=1)))
        sides = [fit(conv(o), picture) for conv, o in zip(self.side_modules, outputs, strict=True)]
        return torch.sigmoid(self.out_conv(torch.cat(sides[::-1], dim=1)))


def with_statistics(model):
    """Batch norm that does something, so that a wrong place shows."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.mark.parametrize("bias", [False, True])
def test_tutorial_layout(tmp_path, bias):
    theirs = with_statistics(TutorialNet(LITE, bias))
    torch.save(theirs.state_dict(), tmp_path / "t.pth")
    ours = load_model(tmp_path / "t.pth")
    assert ours.config == LITE.replace(conv_bias=bias)
    assert ours.origin == "tutorial layout, u2net_lite, 1 map"
    picture = torch.randn(1, 3, 70, 53)
    with torch.no_grad():
        assert torch.allclose(ours(picture), theirs(picture), atol=1e-6)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("container", [None, "state_dict", "model"])
def test_prefixes_and_containers(tmp_path, prefix, container):
    model = build_model("u2net_lite", out_ch=4)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({container: state, "epoch": 3} if container else state, tmp_path / "w.pt")
    loaded = load_model(tmp_path / "w.pt")
    assert loaded.origin == "state_dict of this toolkit, u2net_lite, 4 maps"
    assert loaded.config.activation == "softmax", (
        "several maps tell classes, as the cloth network's"
    )
    assert same_state(loaded.state_dict(), model.state_dict())


FIRST = "encoder.0.conv_in.conv.weight"
INSIDE = "encoder.0.encoder.0.conv.weight"


def lite(**changed):
    """A checkpoint of lite, with some of it changed."""
    model = build_model("u2net_lite")
    return {"model": model.state_dict(), "config": model.config.to_dict(), **changed}


def first(change):
    """The same, with another first tensor."""
    content = lite()
    content["model"][FIRST] = change(content["model"][FIRST])
    return content


def stage(**changed):
    """The same, with another first stage in its table."""
    content = lite()
    content["config"]["encoder"][0].update(changed)
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda: first(lambda t: t.fill_(torch.nan)), f"{FIRST} contains NaN or Inf"),
        (lambda: first(lambda t: t.fill_(torch.inf)), f"{FIRST} contains NaN or Inf"),
        (lambda: first(torch.Tensor.long), "torch.int64"),
        (lambda: first(torch.Tensor.to_sparse), "not tensors"),
        (lambda: first(lambda t: t.to("meta")), "not tensors"),
        (lambda: lite(model={0: torch.zeros(1)}), "not tensors"),
        (lambda: lite(ema=torch.zeros(4)), "not tensors"),
        (lambda: lite(img_size=10**6), "img_size is 1000000"),
        (lambda: stage(mid_ch=8000), "does not fit"),
        (lambda: stage(height=20_000), "height must be an integer from 2 to 16"),
        (lambda: stage(mid_ch=10**30), "mid_ch must be an integer from 1 to 8192"),
        (lambda: lite(model={}, config={"name": "unet", "width": 1500}), "does not fit"),
        (lambda: {0: torch.zeros(1)}, "not weights"),
        (lambda: {FIRST: torch.zeros(64, 3, 3, 3), INSIDE: torch.tensor(0)}, "does not fit"),
        (lambda: {FIRST: torch.zeros(64, 0, 3, 3)}, "in_ch"),
    ],
)
def test_hostile_weights(tmp_path, content, words):
    """Refused at once, with the file's name; a table's numbers cost no memory."""
    torch.save(content(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=words) as error:
        load_model(tmp_path / "w.pt")
    assert "w.pt" in str(error.value)


def test_tensors_that_share_memory(tmp_path):
    """In the file they are one; training changes each by itself."""
    content = lite()
    names = ("encoder.1.conv_in.bn.weight", "encoder.1.conv_in.bn.bias")
    content["model"][names[1]] = content["model"][names[0]]
    torch.save(content, tmp_path / "w.pt")
    loaded = load_model(tmp_path / "w.pt").state_dict()
    loaded[names[0]].zero_()
    assert loaded[names[1]].eq(1).all()


def test_what_does_not_fit_is_named(tmp_path):
    state = build_model("u2net_lite").state_dict()
    state["encoder.1.conv_in.conv.weight"] = torch.zeros(3, 3)
    state["extra"] = state.pop("sides.2.bias")
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match="looks most like u2net_lite") as error:
        load_model(tmp_path / "w.pt")
    for part in ("missing sides.2.bias", "unexpected extra", "is [3, 3], expected [64, 64, 3, 3]"):
        assert part in str(error.value)


@pytest.mark.parametrize("table", [FULL, LITE])
def test_official_names_there_and_back(table):
    with torch.device("meta"):
        names = list(U2Net(table).state_dict())
    assert [from_official(to_official(name)) for name in names] == names
    assert len({to_official(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["U2NET", "U2NETP"])
def test_code_for_the_official_repository(name, tmp_path):
    """Seven maps after the sigmoid, state_dicts under its names in and out, as part of a model
    too, and files that are read as the official layout."""
    torch.manual_seed(0)
    net = getattr(official, name)(3, 1)
    assert {"stage1.rebnconvin.conv_s1.weight", "side6.bias", "outconv.bias"} <= set(
        net.state_dict()
    )
    maps = net(torch.randn(2, 3, 40, 33))
    assert isinstance(maps, tuple) and [m.shape for m in maps] == [(2, 1, 40, 33)] * 7
    assert all(m.min() >= 0 and m.max() <= 1 for m in maps)
    maps[0].mean().backward()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    loaded = load_model(tmp_path / "w.pth")
    assert loaded.origin.startswith("official U-2-Net layout, u2net_")
    again = getattr(official, name)(3, 1)
    assert not any(again.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True)))
    picture = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        outputs = net.eval()(picture)[0], again.eval()(picture)[0], loaded(picture)
    assert torch.equal(*outputs[:2]) and torch.equal(outputs[0], outputs[2])
    parent = nn.Sequential(net)
    assert "0.stage1.rebnconvin.conv_s1.weight" in parent.state_dict()
    parent.load_state_dict(parent.state_dict())


def test_official_network_in_this_toolkit(tmp_path):
    """Saved, sent, predicted with as any other."""
    torch.manual_seed(0)
    theirs = official.U2NETP().eval()
    save_model(theirs, tmp_path / "a.safetensors")
    theirs.save_pretrained(tmp_path / "folder")
    picture = torch.rand(3, 40, 40)
    expected = Predictor(theirs, 64, "cpu", "off")(picture)
    for path in (tmp_path / "a.safetensors", tmp_path / "folder"):
        assert torch.equal(Predictor(load_model(path), 64, "cpu", "off")(picture), expected)
    again = official.U2NETP.from_pretrained(tmp_path / "folder")
    assert same_state(again.state_dict(), theirs.state_dict())


def test_official_blocks():
    x = torch.randn(1, 3, 64, 64)
    for block in (official.RSU7, official.RSU6, official.RSU5, official.RSU4, official.RSU4F):
        assert block(3, 8, 16)(x).shape == (1, 16, 64, 64)
    conv = official.REBNCONV(3, 8, dirate=2)
    assert conv(x).shape == (1, 8, 64, 64) and conv.conv.bias is not None
    assert conv.conv.dilation == (2, 2)


def test_round_trip_is_bit_equal(tmp_path):
    """Official → ours → safetensors → official."""
    theirs = official.U2NETP().state_dict()
    torch.save(theirs, tmp_path / "a.pth")
    save_model(load_model(tmp_path / "a.pth"), tmp_path / "b.safetensors")
    back = official.U2NETP()
    ours = load_model(tmp_path / "b.safetensors").state_dict()
    back.load_state_dict({to_official(name): tensor for name, tensor in ours.items()})
    assert same_state(back.state_dict(), theirs)


def test_values_that_16_bits_do_not_hold(call, tmp_path):
    network = make_varied_network()
    network.sides[0].weight.data[0, 0, 0, 0] = 1e5
    save_model(network, tmp_path / "a.pt")
    status, _, told = call(convert.main, tmp_path / "a.pt", tmp_path / "b.pt", "--half")
    assert status == 2 and "sides.0.weight has values too large for 16 bits" in told
    assert not (tmp_path / "b.pt").exists()


def test_means_of_other_sizes_and_of_one_file(call, tmp_path):
    for name, size in (("a.pt", 64), ("b.pt", 96)):
        network = make_varied_network()
        network.img_size = size
        save_model(network, tmp_path / name)
    mean = [tmp_path / "a.pt", tmp_path / "m.pt", "--average-with"]
    status, told, _ = call(convert.main, *mean, tmp_path / "b.pt")
    assert status == 0 and "image size is kept, 64²; the others have 96²" in told
    assert load_model(tmp_path / "m.pt").img_size == 64
    (tmp_path / "link.pt").symlink_to(tmp_path / "a.pt")
    status, _, told = call(convert.main, *mean, tmp_path / "link.pt")
    assert status == 2 and "named twice" in told
