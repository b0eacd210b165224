"""The modules that inference puts in the place of torch's, against torch's."""

import copy

import pytest
import torch
from helpers.data import SMALL, make_varied_network
from torch import nn

from src import NETWORKS, Predictor, build_model, load_model
from src.inference import fast
from src.inference.fast import Double, PackedConv, Pool2, RowConv, has_onednn, prepare
from src.networks.u2net import UpsampleLike

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not has_onednn(), reason="no oneDNN for this processor")
NARROW = sorted(n for n in NETWORKS if not n.startswith(("u2net", "isnet")))
SIZES = ((64, 48), (33, 47), (1, 1), (2, 2), (1, 6), (300, 2))


def small(name):
    """A small network of that name."""
    if name == "small":
        return make_varied_network(SMALL)
    return build_model(name, **({"width": 4} if name in NARROW else {})).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dilation", [1, 4])
def test_packed_convolution(dtype, dilation):
    """To the bit, ReLU included."""
    if not has_onednn(dtype):
        pytest.skip(f"no oneDNN for {dtype} on this processor")
    conv = nn.Conv2d(12, 20, 3, padding=dilation, dilation=dilation).requires_grad_(False)
    conv = conv.to(dtype, memory_format=torch.channels_last)
    x = torch.randn(2, 12, 19, 23).to(dtype, memory_format=torch.channels_last)
    assert torch.equal(PackedConv(conv)(x), conv(x))
    assert torch.equal(PackedConv(conv, "relu")(x.float()), conv(x).relu())


@needs_onednn
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_convolution_by_rows(channels, size):
    conv = nn.Conv2d(9, channels, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 9, *size)
    torch.testing.assert_close(RowConv(conv)(x), conv(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("up", [True, False])
def test_pooling(size, up):
    """Rounding up or down."""
    pool, x = nn.MaxPool2d(2, ceil_mode=up), torch.randn(2, 3, *(n + 1 for n in size))
    assert torch.equal(Pool2(pool)(x), pool(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("to", [2, 3])
def test_upsampling(monkeypatch, size, to):
    """Of maps of any size, and also by other factors than 2."""
    monkeypatch.setattr(Double, "MIN_VALUES", 0)
    x, ref = torch.randn(2, 3, *size), torch.empty(1, 1, to * size[0], to * size[1])
    torch.testing.assert_close(Double()(x, ref), UpsampleLike()(x, ref))


def test_other_modules_stay():
    """Of a network from elsewhere."""
    pool, conv = nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
    network = nn.Sequential(conv, pool)
    x = torch.randn(1, 3, 20, 20)
    with torch.inference_mode():
        expected = network(x)
        torch.testing.assert_close(prepare(network, CPU, torch.float32)(x), expected)


@needs_onednn
@pytest.mark.parametrize("options", [{"bias": False}, {"groups": 3}])
def test_few_channels_without_bias_or_in_groups(options):
    """Such convolutions are no rows."""
    network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, **options))
    x = torch.randn(1, 3, 20, 20)
    with torch.inference_mode():
        expected = network(x)
        torch.testing.assert_close(prepare(network, CPU, torch.float32)(x), expected)


@needs_onednn
@pytest.mark.parametrize("name", ["small", "isnet_lite", *NARROW])
def test_every_network_is_the_same_when_packed(name):
    """In float32, at a size that is odd somewhere and at one that is not."""
    network = small(name)
    packed = prepare(copy.deepcopy(network), CPU, torch.float32)
    assert any(isinstance(module, PackedConv) for module in packed.modules())
    assert not any(type(module) is nn.Conv2d for module in packed.modules())
    for size in ((64, 96), (75, 61)):
        x = torch.randn(2, 3, *size)
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), network(x), rtol=0, atol=1e-5)


def test_without_onednn(monkeypatch, weights):
    """Another processor gets torch's own modules, and the same map."""
    picture = torch.rand(3, 50, 60)
    ours = Predictor(weights, device="cpu", amp="off")(picture)
    monkeypatch.setattr(fast, "has_onednn", lambda *_: False)
    plain = Predictor(weights, device="cpu", amp="off")
    assert not any(isinstance(module, PackedConv) for module in plain.model.modules())
    torch.testing.assert_close(plain(picture), ours, rtol=0, atol=1e-5)


def test_half_precision_without_its_instructions(monkeypatch, weights):
    """oneDNN refuses bfloat16 on processors with AVX2 alone: torch's own convolutions do it there,
    and those that stay in float32 are still packed."""
    monkeypatch.setattr(fast, "has_onednn", lambda dtype=torch.float32: dtype == torch.float32)
    picture = torch.rand(3, 50, 60)
    network = load_model(weights)
    with torch.no_grad():
        network.encoder[0].conv_in.bn.bias.fill_(200)  # of a layer that bfloat16 would spoil
    exact = Predictor(network, device="cpu", amp="off")(picture)
    half = Predictor(network, device="cpu", amp="bf16")
    packed = {m.dtype for m in half.model.modules() if isinstance(m, PackedConv)}
    plain = {m.weight.dtype for m in half.model.modules() if isinstance(m, nn.Conv2d)}
    assert packed == {torch.float32} and plain == {torch.bfloat16}
    assert (half(picture) - exact).abs().mean() < 0.01


@pytest.mark.parametrize(("name", "layer"), [("fcn8s", 15), ("unet", 9)])
def test_half_precision_before_a_transposed_convolution(name, layer):
    """Which then gets float32 from a layer that stayed so."""
    network = build_model(name, width=4)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        convs[layer].bias.fill_(200)
    picture = torch.rand(3, 40, 50)
    half, exact = (Predictor(network, 64, "cpu", amp)(picture) for amp in ("bf16", "off"))
    assert (half - exact).abs().mean() < 0.02


def test_half_precision_keeps_channels_of_huge_constants():
    """bf16 has steps of 1 at 226: a layer with such a bias must stay in float32."""
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.ReLU(), torch.nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        net[0].weight.fill_(1), net[0].bias.fill_(226.28)
        net[2].weight.fill_(5), net[2].bias.fill_(-5 * 226.28)
        picture = torch.linspace(0, 1, 9).view(1, 1, 3, 3)
        half = prepare(net, torch.device("cpu"), torch.bfloat16)(picture.bfloat16())
    assert (half.float() - 5 * picture).abs().max() < 0.05
