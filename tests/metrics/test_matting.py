"""The measures of mattes, against their formulas as scipy computes them."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from train_utils.metrics.measures.matting import MATTING, matting_measures


def gradient(alpha):
    """As Rhemann's and Xu's ``gaussgradient(alpha, 1.4)``: full filters in the plane."""
    sigma, epsilon = 1.4, 1e-2
    half = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * epsilon)))
    assert half == 4
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(float)

    def gauss(t):
        return np.exp(-(t**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))

    along_x = gauss(y) * (-x * gauss(x) / sigma**2)
    along_x /= np.sqrt((along_x**2).sum())
    parts = [ndimage.convolve(alpha, f, mode="nearest") for f in (along_x, along_x.T)]
    return np.hypot(*parts)


def reference(found, truth, stretch):
    found, truth = found / 255, truth / 255

    def scaled(values):
        low, high = values.min(), values.max()
        return (values - low) / (high - low) if high > low else values

    found = scaled(found) if stretch else found
    off = np.abs(found - truth)
    slopes = gradient(scaled(found)) - gradient(scaled(truth))
    return off.mean(), off.sum() / 1000, (off**2).mean(), (slopes**2).sum() / 1000


@pytest.mark.parametrize("stretch", [False, True])
@pytest.mark.parametrize("kind", ["noise", "smooth", "narrow", "constant", "tiny"])
def test_against_scipy(kind, stretch):
    rng = np.random.default_rng(3)
    shape = (3, 2) if kind == "tiny" else (60, 83)
    found, truth = rng.random((2, *shape)) * 255
    if kind == "smooth":
        found, truth = (ndimage.gaussian_filter(part, 6) for part in (found, truth))
    if kind == "narrow":
        found = 90 + found / 8
    if kind == "constant":
        truth[:] = 77
    found, truth = (part.round().astype(np.uint8) for part in (found, truth))
    result = matting_measures(torch.from_numpy(found), torch.from_numpy(truth), stretch)
    assert result == pytest.approx(reference(found, truth, stretch), rel=1e-9, abs=1e-12)
    assert len(result) == len(MATTING)


def test_a_matte_and_itself():
    ramp = torch.arange(256, dtype=torch.uint8).repeat(9, 1)
    assert matting_measures(ramp, ramp, True) == (0, 0, 0, 0)
