"""Muon against torch's own, which takes matrices alone."""

import copy

import pytest
import torch
from torch import nn

from src import build_model
from train_utils.training.optim import Muon, make_optimizer, orthogonalize


@pytest.mark.parametrize("shape", [(16, 144), (64, 16), (32, 32)])
def test_as_torch(shape):
    # torch's iteration is in bfloat16, which the last digits of an update show.
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(4, *shape)
    theirs = nn.Parameter(start.clone())
    reference = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    ours = nn.Parameter(start.clone().view(shape[0], -1, 1, 2))
    optimizer = Muon([{"params": [ours], "orthogonal": True, "weight_decay": 0.1}], lr=0.02)
    for gradient in gradients:
        theirs.grad, ours.grad = gradient.clone(), gradient.clone().view(ours.shape)
        reference.step()
        optimizer.step()
    moved = (theirs - start).norm().item()
    assert moved > 0.2
    assert (ours.detach().view(shape) - theirs.detach()).norm() < 0.02 * moved


def test_orthogonalize():
    torch.manual_seed(0)
    matrices = torch.randn(3, 24, 60, dtype=torch.float64)
    result = orthogonalize(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    diagonal = u.mT @ result @ vh.mT
    values = diagonal.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.68 and values.max() < 1.21
    assert (diagonal - torch.diag_embed(values)).abs().max() < 1e-9  # singular vectors are kept
    assert torch.equal(orthogonalize(matrices.mT), result.mT)


def test_kernels_alone_are_orthogonalized():
    model = build_model("u2net_lite")
    optimizer = make_optimizer(model, 1e-3, 0.1, "muon")
    kernels, vectors, inner = (group["params"] for group in optimizer.param_groups)
    assert {p.ndim for p in vectors} == {1} and {p.ndim for p in inner} == {4}
    # The image's three channels, and what gives a map of one or fuses six of them.
    assert {min(p.shape[:2]) for p in kernels} == {1, 3}
    assert min(min(p.shape[:2]) for p in inner) == 16
    count = sum(len(group) for group in (kernels, vectors, inner))
    assert count == len(list(model.parameters()))


def test_others_are_adamw():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 1, 1))
    twin = copy.deepcopy(model)
    pair = [make_optimizer(model, 0.01, 0.1, "muon"), make_optimizer(twin, 0.01, 0.1)]
    for net, optimizer in zip((model, twin), pair, strict=True):
        net(torch.ones(1, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    same = {k: torch.equal(v, twin.state_dict()[k]) for k, v in model.state_dict().items()}
    assert same == {k: k != "1.weight" for k in same}


def test_state_travels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    optimizer = make_optimizer(model, 0.01, 0.1, "muon")

    def step(net, optimizer):
        net(torch.ones(1, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(model, optimizer)
    twin = copy.deepcopy(model)
    other = make_optimizer(twin, 0.01, 0.1, "muon")
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer)
    step(twin, other)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
