"""Deep-supervision BCE against the formula written out, and under autocast."""

import math

import pytest
import torch

from src import UserError
from train_utils.losses import DeepSupervision, map_names


def plain_bce(logits, target):
    """−mean(y log p + (1 − y) log(1 − p)), in Python floats."""
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    return total / logits.numel()


@pytest.fixture
def maps():
    torch.manual_seed(0)
    return [torch.randn(2, 1, 5, 4, requires_grad=True) for _ in range(3)], torch.rand(2, 1, 5, 4)


@pytest.mark.parametrize("weights", [None, (1.0, 0.5, 0.25)])
def test_equals_the_plain_formula(maps, weights):
    logits, target = maps
    total, terms = DeepSupervision(weights)(logits, target)
    expected = [plain_bce(x, target) for x in logits]
    assert terms.tolist() == pytest.approx(expected, rel=1e-5)
    whole = sum(w * e for w, e in zip(weights or (1, 1, 1), expected, strict=True))
    assert total.item() == pytest.approx(whole, rel=1e-5)


def plain_iou(logits, target):
    """1 − intersection over union of probabilities, each map by itself, in Python floats."""
    values = []
    for x, y in zip(logits.flatten(1).tolist(), target.flatten(1).tolist(), strict=True):
        p = [1 / (1 + math.exp(-v)) for v in x]
        both = sum(a * b for a, b in zip(p, y, strict=True))
        values.append(1 - (both + 1) / (sum(p) + sum(y) - both + 1))
    return sum(values) / len(values)


def test_with_iou(maps):
    logits, target = maps
    total, terms = DeepSupervision(loss="bce+iou")(logits, target)
    expected = [plain_bce(x, target) + plain_iou(x, target) for x in logits]
    assert terms.tolist() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert all(x.grad.abs().sum() > 0 for x in logits)


def test_gradient_is_the_weighted_difference(maps):
    """dℓ/dx = w (σ(x) − y) / n."""
    logits, target = maps
    DeepSupervision((1.0, 2.0, 0.0))(logits, target)[0].backward()
    for x, weight in zip(logits, (1.0, 2.0, 0.0), strict=True):
        expected = weight * (x.detach().sigmoid() - target) / target.numel()
        assert torch.allclose(x.grad, expected, atol=1e-7)


def test_terms_carry_no_gradient(maps):
    assert not DeepSupervision()(*maps)[1].requires_grad


def test_safe_under_autocast():
    """Logits of 60 in half precision: a sigmoid before the loss would give log(0)."""
    logits = [torch.full((1, 1, 8, 8), 60.0, dtype=torch.bfloat16, requires_grad=True)]
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = DeepSupervision()(logits, torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    total.backward()
    assert total.dtype == torch.float32 and total.item() == pytest.approx(60)
    assert torch.isfinite(logits[0].grad).all() and logits[0].grad.any()


def test_wrong_number_of_weights(maps):
    with pytest.raises(UserError, match="2 loss weights for 3 maps"):
        DeepSupervision((1.0, 1.0))(*maps)


def test_map_names():
    assert map_names(3) == ["fused", "side1", "side2"]
