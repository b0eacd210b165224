"""The other way to a convolution's gradients, against torch's own."""

import pytest
import torch
from torch import nn

from src import build_model
from src.inference.preprocess import normalize
from train_utils.training import gradients


@pytest.fixture
def avx2(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(gradients, "has_onednn", lambda: True)


def make_turned(model: nn.Module) -> nn.Module:
    gradients.speed_up(model, torch.device("cpu"), torch.float32)
    return model


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 24, 3, padding=1, bias=False),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(32, 16, (3, 5), stride=(2, 1)),
    ],
)
def test_gradients_equal_those_of_torch(avx2, conv):
    conv = conv.double()
    x = torch.randn(2, conv.in_channels, 9, 11, dtype=torch.float64, requires_grad=True)
    x = x.to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    y = conv(x)
    weights = torch.randn_like(y)
    leaves = [x, *conv.parameters()]
    expected = torch.autograd.grad((y * weights).sum(), leaves)
    turned = make_turned(nn.Sequential(conv))[0]
    assert type(turned) is gradients.TurnedConv2d
    y = turned(x)
    got = torch.autograd.grad((y * weights).sum(), leaves)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_network_learns_the_same(avx2):
    torch.manual_seed(0)
    model = build_model("u2net_lite").double().train()
    pictures = normalize(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)).double()
    names = list(model.state_dict())

    def learn() -> list[torch.Tensor]:
        model.zero_grad()
        sum(m.square().mean() for m in model(pictures)).backward()
        return [p.grad.clone() for p in model.parameters()]

    expected = learn()
    make_turned(model)
    assert sum(isinstance(m, gradients.TurnedConv2d) for m in model.modules()) > 100
    for a, b in zip(learn(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
    assert list(model.state_dict()) == names


def test_left_alone_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    conv = make_turned(nn.Sequential(nn.Conv2d(32, 32, 3)))[0]
    assert type(conv) is nn.Conv2d


def test_what_needs_no_gradient_goes_torch_s_way(avx2, monkeypatch):
    def never(*args: object) -> None:
        raise AssertionError("called")

    conv = make_turned(nn.Sequential(nn.Conv2d(32, 32, 3), nn.Conv2d(3, 32, 3), nn.Conv2d(3, 3, 1)))
    monkeypatch.setattr(gradients._Turned, "apply", never)
    with torch.no_grad():
        conv[0](torch.zeros(1, 32, 4, 4))
    conv[1](torch.zeros(1, 3, 4, 4))  # few channels
    conv[2](torch.zeros(1, 3, 4, 4))
