"""MAE and F-measures against PySODMetrics on the same maps."""

import numpy as np
import py_sod_metrics
import pytest
import torch

from train_utils.metrics import SaliencyMetrics, histogram, to_levels

TOLERANCE = 1e-4


def blob(shape, seed, sharpness):
    """A smooth random map of uint8, and a mask that has something to do with it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    cy, cx = rng.uniform(0.2, 0.6, 2)
    distance = np.hypot(y - cy, x - cx)
    mask = distance < rng.uniform(0.1, 0.3)
    saliency = 1 / (1 + np.exp(sharpness * (distance - 0.2))) + rng.normal(0, 0.1, shape)
    return (saliency.clip(0, 1) * 255).astype(np.uint8), mask


def odd_set():
    """Ordinary pictures and every odd one: empty, full, constant, tiny, grey, of narrow range."""
    pairs = [blob((40 + i, 30 + 7 * i), i, 5 + 10 * i) for i in range(6)]
    saliency, mask = blob((33, 47), 9, 12)
    zeros = np.zeros_like(mask)
    pairs += [
        (saliency, zeros),  # empty mask
        (saliency, ~zeros),  # full mask
        (np.zeros_like(saliency), zeros),  # nothing in either
        (np.zeros_like(saliency), mask),  # constant maps
        (np.full_like(saliency, 255), mask),
        (np.full_like(saliency, 77), mask),
        (mask.astype(np.uint8) * 255, mask),  # perfect
        (255 - mask.astype(np.uint8) * 255, mask),  # its opposite
        (saliency // 4 + 30, mask),  # narrow range: only stretching makes it a good map
        (saliency[:1, :1], mask[:1, :1]),  # one pixel
        (saliency[:2, :1], np.array([[True], [False]])),
    ]
    return pairs


@pytest.fixture(scope="module")
def pysod():
    """PySODMetrics' numbers of the odd set."""
    measures = {"mae": py_sod_metrics.MAE(), "f": py_sod_metrics.Fmeasure()}
    for saliency, mask in odd_set():
        for measure in measures.values():
            measure.step(saliency, mask.astype(np.uint8) * 255)
    f, pr = measures["f"].get_results()["fm"], measures["f"].get_results()["pr"]
    p, r = pr["p"], pr["r"]
    return {
        "mae": measures["mae"].get_results()["mae"],
        "max_f_per_image": f["curve"].max(),
        "mean_f": f["curve"].mean(),
        "adaptive_f": f["adp"],
        "max_f": (1.3 * p * r / np.maximum(0.3 * p + r, 1e-12)).max(),
    }


def score(pairs, batch, stretch=True):
    metrics = SaliencyMetrics(stretch)
    histograms = [histogram(torch.from_numpy(s), torch.from_numpy(m)) for s, m in pairs]
    for start in range(0, len(histograms), batch):
        metrics.update(histograms[start : start + batch])
    return metrics.results()


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_equals_pysodmetrics(pysod, batch):
    ours = score(odd_set(), batch)
    assert ours["images"] == len(odd_set()) and ours["empty_masks"] == 3
    for name, value in pysod.items():
        assert ours[name] == pytest.approx(value, abs=TOLERANCE), name


def test_every_picture_equals_pysodmetrics():
    """One by one, so that no two errors cancel in a mean."""
    for saliency, mask in odd_set():
        mae, f = py_sod_metrics.MAE(), py_sod_metrics.Fmeasure()
        for measure in (mae, f):
            measure.step(saliency, mask.astype(np.uint8) * 255)
        ours = score([(saliency, mask)], 1)
        results = f.get_results()["fm"]
        assert ours["mae"] == pytest.approx(mae.get_results()["mae"], abs=1e-9)
        assert ours["max_f_per_image"] == pytest.approx(results["curve"].max(), abs=1e-9)
        assert ours["adaptive_f"] == pytest.approx(results["adp"], abs=1e-9)


def test_without_stretching():
    """MAE of the map as it is, which stretching would change."""
    saliency, mask = blob((33, 47), 9, 12)
    saliency = saliency // 4 + 30
    plain = np.abs(saliency / 255 - mask).mean()
    assert score([(saliency, mask)], 1, stretch=False)["mae"] == pytest.approx(plain, abs=1e-9)
    assert abs(score([(saliency, mask)], 1)["mae"] - plain) > 0.1


def test_to_levels():
    saliency = torch.tensor([[0.2, 0.4], [0.6, 0.7]])
    assert to_levels(saliency, stretch=False).tolist() == [[51, 102], [153, 178]]
    assert to_levels(saliency, stretch=True).tolist() == [[0, 102], [204, 255]]
    constant = torch.full((2, 2), 0.5)
    assert to_levels(constant, stretch=True).eq(128).all()


def test_sizes_must_agree():
    with pytest.raises(ValueError, match="map is"):
        histogram(torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, 2))


def test_no_pictures():
    with pytest.raises(ValueError, match="no pictures"):
        SaliencyMetrics().results()
