"""Losses against their formulas written out, in deep supervision and under autocast."""

import math

import cv2
import numpy as np
import pytest
import torch

from src import UserError
from train_utils.training.losses import DeepSupervision


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


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.detach().double().numpy()))


def each_map(formula):
    """The mean of a formula of probabilities and mask, each map by itself."""

    def mean(p, t):
        pairs = zip(p.reshape(-1, *p.shape[-2:]), t.reshape(-1, *t.shape[-2:]), strict=True)
        return np.mean([formula(*pair) for pair in pairs])

    return mean


@each_map
def plain_iou(p, t):
    return 1 - ((p * t).sum() + 1) / ((p + t - p * t).sum() + 1)


@each_map
def plain_dice(p, t):
    return 1 - (2 * (p * t).sum() + 1) / ((p**2).sum() + (t**2).sum() + 1)


@each_map
def plain_ssim(p, t):
    """Wang et al. 2004, equation 13, its windows by OpenCV."""

    def blur(x):
        return cv2.GaussianBlur(x, (11, 11), 1.5, borderType=cv2.BORDER_CONSTANT)

    mp, mt = blur(p), blur(t)
    var_p, var_t, cov = blur(p * p) - mp**2, blur(t * t) - mt**2, blur(p * t) - mp * mt
    above = (2 * mp * mt + 1e-4) * (2 * cov + 9e-4)
    return 1 - (above / ((mp**2 + mt**2 + 1e-4) * (var_p + var_t + 9e-4))).mean()


def plain_cross_entropy(p, t):
    return -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))


PLAIN = {"bce": plain_cross_entropy, "dice": plain_dice, "iou": plain_iou, "ssim": plain_ssim}


@pytest.mark.parametrize(
    "loss", ["bce", "dice", "iou", "ssim", "bce+dice", "bce+iou", "bce+iou+ssim"]
)
def test_losses_of_one_map(loss):
    """Each map of three, and their weighted sum; a gradient for each."""
    torch.manual_seed(0)
    logits = [torch.randn(2, 1, 16, 14, requires_grad=True) for _ in range(3)]
    target = torch.randint(0, 2, (2, 1, 16, 14), dtype=torch.uint8)
    total, terms = DeepSupervision((1.0, 0.5, 0.25), loss)(logits, target)
    t = target.double().numpy()
    expected = [sum(PLAIN[part](sigmoid(x), t) for part in loss.split("+")) for x in logits]
    assert terms.tolist() == pytest.approx(expected, rel=1e-4)
    assert total.item() == pytest.approx(np.dot((1.0, 0.5, 0.25), expected), rel=1e-4)
    total.backward()
    assert all(x.grad.abs().sum() > 0 for x in logits)


def softmax(logits):
    e = np.exp(logits.detach().double().numpy())
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("loss", ["ce", "dice", "iou", "ssim", "ce+dice", "ce+iou+ssim"])
@pytest.mark.parametrize("ignore_index", [None, 3, 255])
def test_losses_of_classes(loss, ignore_index):
    """Ignored pixels are as if both map and mask were 0 there; in ``ce`` they are left out."""
    torch.manual_seed(1)
    logits = [torch.randn(2, 3, 13, 12, requires_grad=True) for _ in range(2)]
    mask = torch.randint(0, 3, (2, 1, 13, 12), dtype=torch.uint8)
    if ignore_index:
        mask[torch.rand(mask.shape) < 0.3] = ignore_index
    total, terms = DeepSupervision((1.0, 2.0), loss, 3, ignore_index)(logits, mask)
    counts = (mask.numpy() < 3) * 1.0
    one_hot = (mask.numpy() == np.arange(3).reshape(1, 3, 1, 1)) * 1.0
    plain = PLAIN | {"ce": lambda p, t: -(t * np.log(p + (counts == 0))).sum() / counts.sum()}
    expected = [
        sum(plain[part](softmax(x) * counts, one_hot) for part in loss.split("+")) for x in logits
    ]
    assert terms.tolist() == pytest.approx(expected, rel=1e-4)
    total.backward()
    for x in logits:
        ignored = x.grad.abs().amax(1, keepdim=True)[mask > 2]
        assert x.grad.any() and (not ignored.numel() or not ignored.any())


@pytest.mark.parametrize("scale", [1, 1e-3])
def test_weighted_bce(scale):
    """Σ w ℓ / Σ w with the weight of each pixel's class, however small the weights are."""
    logits, target = torch.randn(2, 1, 6, 5), torch.randint(0, 2, (2, 1, 6, 5)).byte()
    _, terms = DeepSupervision(class_weights=(0.5 * scale, 3.0 * scale))([logits], target)
    p, t = sigmoid(logits), target.numpy()
    weights = np.where(t == 1, 3.0, 0.5)
    losses = -np.where(t == 1, np.log(p), np.log(1 - p))
    assert terms.item() == pytest.approx((weights * losses).sum() / weights.sum(), rel=1e-5)


def test_weighted_ce_is_torchs():
    logits, mask = torch.randn(2, 4, 6, 5), torch.randint(0, 5, (2, 1, 6, 5)).byte()
    weights = (0.2, 1.0, 4.0, 0.7)
    _, terms = DeepSupervision(classes=4, ignore_index=4, class_weights=weights)([logits], mask)
    expected = torch.nn.functional.cross_entropy(
        logits, mask[:, 0].long(), torch.tensor(weights), ignore_index=4
    )
    assert terms.item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_but_ignored_pixels():
    """A batch of them teaches nothing, and spoils nothing."""
    logits = torch.randn(1, 3, 12, 12, requires_grad=True)
    mask = torch.full((1, 1, 12, 12), 7, dtype=torch.uint8)
    total, _ = DeepSupervision(loss="ce+iou+dice+ssim", classes=3, ignore_index=7)([logits], mask)
    total.backward()
    assert total.isfinite() and not logits.grad.any()


def test_smaller_maps_are_of_the_centre():
    """U-Net's unpadded maps meet the middle of the mask."""
    mask = torch.zeros(1, 1, 9, 10, dtype=torch.uint8)
    mask[..., 2:6, 3:7] = 1
    found, _ = DeepSupervision()([torch.full((1, 1, 4, 4), 20.0)], mask)
    assert found.item() < 1e-6


@pytest.mark.parametrize(
    ("loss", "classes", "named"), [("ce", 1, "ce"), ("bce", 3, "bce"), ("bce+dcie", 1, "dcie")]
)
def test_losses_that_do_not_fit(loss, classes, named):
    with pytest.raises(UserError, match=f"'{named}'"):
        DeepSupervision(loss=loss, classes=classes)


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
    with pytest.raises(UserError, match="loss_weights: 2 given for 3 maps"):
        DeepSupervision((1.0, 1.0))(*maps)
