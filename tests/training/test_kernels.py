"""The kernels between convolutions, against torch's own layers in double precision."""

import copy
import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from src import build_model
from src.networks.u2net import ConvBNReLU, Pool, UpsampleLike
from train_utils.training.kernels import functions, layers, library, use_kernels

pytestmark = pytest.mark.skipif(library.load() is None, reason="needs a C++ compiler, on Linux")
DTYPES = {torch.float32: 2e-5, torch.bfloat16: 8e-3}  # half a step of rounding, and some


def maps(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).to(dtype, memory_format=torch.channels_last)
    return x.requires_grad_()


def norm(channels: int, **options) -> nn.BatchNorm2d:
    torch.manual_seed(1)
    bn = nn.BatchNorm2d(channels, **options)
    for tensor in (bn.weight, bn.running_mean, bn.running_var):
        tensor.data += torch.rand(channels)
    bn.bias.data.normal_()
    return bn


def error(values, exact: list[torch.Tensor]) -> list[float]:
    """Of each in the mean, relative to its size."""
    pairs = [(a.double(), b.double()) for a, b in zip(values, exact, strict=True)]
    return [((a - b).abs().mean() / b.abs().mean().clamp(min=1e-9)).item() for a, b in pairs]


def through(function, x, bn, dy, *more):
    y = function(x, bn, *more)
    return y, *torch.autograd.grad(y, (x, bn.weight, bn.bias), dy.to(y.dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(3, 16, 37, 41), (2, 64, 30, 33), (1, 48, 1, 2), (2, 512, 9, 9)])
def test_batch_norm_with_relu(shape, training, dtype):
    x, dy = maps(*shape, dtype=dtype), maps(*shape, seed=1).detach()
    bn = norm(shape[1]).train(training)
    exact, theirs = copy.deepcopy(bn).double(), copy.deepcopy(bn)

    def plain(x, bn):
        return bn(x).relu()

    expected = through(plain, x.detach().double().requires_grad_(), exact, dy)
    torchs = error(through(plain, x, theirs, dy), expected)
    got = through(functions.bn_relu, x, bn, dy)
    assert got[0].dtype == dtype and got[0].is_contiguous(memory_format=torch.channels_last)
    for ours, limit in zip(error(got, expected), torchs, strict=True):
        assert ours <= max(1.05 * limit, 2e-6)
    for (name, value), wanted in zip(bn.named_buffers(), exact.buffers(), strict=True):
        torch.testing.assert_close(value.double(), wanted.double(), rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_the_sum_of_two(training, dtype):
    bn, dy = norm(64).train(training), maps(2, 64, 33, 20, seed=2).detach()
    pair = [maps(2, 64, 33, 20, dtype=dtype, seed=seed) for seed in (0, 1)]
    whole = (pair[0] + pair[1]).detach().requires_grad_()
    expected = through(functions.bn_relu, whole, copy.deepcopy(bn), dy)
    x, other = (part * 1 for part in pair)
    y = functions.bn_relu(x, bn, other)
    assert y.equal(expected[0])
    got = torch.autograd.grad(y, (*pair, bn.weight, bn.bias), dy.to(dtype))
    wanted = (expected[1], *expected[1:])
    assert all(a.equal(b) for a, b in zip(got, wanted, strict=True))


def test_statistics_far_from_zero_and_an_average_of_all_batches():
    x = (maps(4, 16, 64, 64) * 0.01 + 100).detach().requires_grad_()
    bn = norm(16, momentum=None)
    exact = copy.deepcopy(bn).double()
    for _ in range(2):
        functions.bn_relu(x, bn)
        exact(x.double())
    torch.testing.assert_close(bn.running_var.double(), exact.running_var, rtol=1e-4, atol=0)
    assert bn.num_batches_tracked == 2


def test_what_is_not_finite_stays_so():
    x = maps(1, 16, 4, 4).detach()
    x[0, 3, 2, 2] = torch.nan
    assert functions.bn_relu(x.requires_grad_(), norm(16))[0, 3].isnan().all()
    kept, most = functions.pool_beside(x)
    assert kept.isnan().sum() == 1 == most.isnan().sum()
    assert functions.resize(x, (8, 8)).isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("old, new", [((9, 7), (18, 14)), ((5, 1), (9, 2)), ((6, 11), (31, 4))])
def test_resizing(old, new, dtype):
    x, dy = maps(2, 32, *old, dtype=dtype), maps(2, 32, *new, dtype=dtype, seed=1).detach()
    y = functions.resize(x, new)
    exact = x.detach().double().requires_grad_()
    expected = F.interpolate(exact, new, mode="bilinear")
    limit = DTYPES[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=limit, atol=1e-6)
    (to_x,) = torch.autograd.grad(y, x, dy)
    (wanted,) = torch.autograd.grad(expected, exact, dy.double())
    torch.testing.assert_close(to_x.double(), wanted, rtol=limit, atol=limit / 10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 1), (1, 4)])
def test_pooling_beside(size, dtype):
    x = maps(2, 48, *size, dtype=dtype).relu().detach().requires_grad_()  # with many ties
    kept, most = functions.pool_beside(x)
    pooled = Pool()(x)
    assert kept.equal(x) and most.equal(pooled)
    dy, beside = maps(*most.shape, dtype=dtype, seed=1), maps(*x.shape, dtype=dtype, seed=2)
    (got,) = torch.autograd.grad((kept, most), x, (beside, dy))
    (wanted,) = torch.autograd.grad(pooled, x, dy)
    assert got.equal(wanted + beside)


def small() -> nn.Module:
    torch.manual_seed(0)
    return build_model("u2net_lite").to(memory_format=torch.channels_last).train()


def learn(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(m.float().square().mean() for m in model(x)).backward()
    gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return {n: v.clone() for n, v in {**gradients, **dict(model.named_buffers())}.items()}


def test_network_learns_the_same():
    x = torch.randn(2, 3, 43, 64).to(memory_format=torch.channels_last)
    model = small()
    names, kinds = list(model.state_dict()), (ConvBNReLU, Pool, UpsampleLike)
    exact = learn(copy.deepcopy(model).double(), x.double())
    torchs = learn(copy.deepcopy(model), x)
    use_kernels(model, x.device)
    assert not any(type(module) in kinds for module in model.modules())
    assert list(model.state_dict()) == names
    recomputed = copy.deepcopy(model)
    recomputed.recompute = True
    got = learn(model, x)
    # ReLUs near zero turn by rounding alone, so torch's own float32 is the measure.
    ours, limits = ([error([r[n]], [v])[0] for n, v in exact.items()] for r in (got, torchs))
    assert sorted(ours)[len(ours) // 2] < 1.2 * sorted(limits)[len(ours) // 2] < 0.02
    assert max(ours) < 2 * max(limits)
    assert all(value.equal(got[name]) for name, value in learn(recomputed, x).items())


def test_any_number_of_threads_gives_the_same_numbers():
    x, bn = maps(2, 64, 70, 70), norm(64)
    count, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(through(functions.bn_relu, x, copy.deepcopy(bn), x.detach()))
    finally:
        torch.set_num_threads(count)
    for other in results[1:]:
        assert all(a.equal(b) for a, b in zip(results[0], other, strict=True))


def test_what_is_not_for_the_kernels(monkeypatch):
    def never(*_):
        raise AssertionError("called")

    layer, x = ConvBNReLU(16, 16).train(), maps(1, 16, 8, 8)
    use_kernels(layer, x.device)
    monkeypatch.setattr(layers, "bn_relu", never)
    with pytest.raises(AssertionError, match="called"):
        layer(x)
    seen = []
    with layer.bn.register_forward_hook(lambda *_: seen.append(1)):
        layer(x)
    assert seen == [1]
    with torch.no_grad():
        layer(x)
    copy.deepcopy(layer).eval()(x)
    copy.deepcopy(layer).double()(x.double())
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    assert isinstance(synchronised, layers.KernelConvBNReLU)
    assert not functions.takes_norm(synchronised.bn, x)
    assert not functions.takes_norm(nn.BatchNorm2d(16, affine=False), x)
    assert not functions.takes_norm(nn.BatchNorm2d(16, track_running_stats=False), x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(maps(1, 16, 1, 1))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functions.bn_relu(x, norm(16)),
        lambda x: functions.resize(x, (9, 9)),
        lambda x: functions.pool_beside(x)[1],
    ],
)
def test_a_gradient_of_the_gradient_is_refused(function):
    x = maps(1, 16, 4, 4)
    with pytest.raises(RuntimeError, match=r"no second derivative.* U2NET_TOOLKIT_KERNELS=off"):
        torch.autograd.grad(function(x).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    "variables, reason, level",
    [
        ({"U2NET_TOOLKIT_KERNELS": "off"}, "is off", logging.INFO),
        ({"CXX": "no-such-compiler"}, "no-such-compiler", logging.WARNING),
        ({"CXX": "false"}, "false", logging.WARNING),
        ({"CXX": 'g++ "'}, "No closing quotation", logging.WARNING),
        ({"CXX": "", "PATH": ""}, "no C.. compiler was found", logging.WARNING),
        ({"U2NET_TOOLKIT_CACHE": "/dev/null/cache"}, "Not a directory", logging.WARNING),
        ({"U2NET_TOOLKIT_CACHE": "~no-such-user/cache"}, "no home folder", logging.WARNING),
    ],
)
def test_without_them_a_line_in_the_log(variables, reason, level, monkeypatch, caplog):
    """A warning, which is printed, if the user may want to mend it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level(logging.INFO):
        assert library.load.__wrapped__() is None
    (record,) = caplog.records
    assert re.search(reason, record.getMessage()) and record.levelno == level
    layer = ConvBNReLU(16, 16)
    monkeypatch.setattr(layers, "load", lambda: None)
    use_kernels(layer, torch.device("cpu"))
    assert type(layer) is ConvBNReLU


def test_built_once(tmp_path, monkeypatch):
    built = []
    monkeypatch.setenv("U2NET_TOOLKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(library, "_build", lambda _, path: built.append(path) or path.touch())
    for _ in range(2):
        assert library.load.__wrapped__() is None  # an empty file is no library
    assert len(built) == 1
