"""Every measure against PySODMetrics on the same maps."""

import numpy as np
import py_sod_metrics
import pytest
import torch
from scipy.ndimage import binary_erosion, distance_transform_edt

from train_utils.metrics.measures.saliency import SaliencyMetrics, histogram, to_levels
from train_utils.metrics.measures.structure import relaxed_boundary_f, structural

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


def pysod(pairs):
    """PySODMetrics' numbers, under our names."""
    names = "MAE", "Fmeasure", "WeightedFmeasure", "Smeasure", "Emeasure"
    measures = {name: getattr(py_sod_metrics, name)() for name in names}
    for saliency, mask in pairs:
        for measure in measures.values():
            measure.step(saliency, mask.astype(np.uint8) * 255)
    results = {k: v for measure in measures.values() for k, v in measure.get_results().items()}
    f, e, p, r = results["fm"], results["em"], results["pr"]["p"], results["pr"]["r"]
    return {
        "mae": results["mae"],
        "max_f": (1.3 * p * r / np.maximum(0.3 * p + r, 1e-12)).max(),
        "max_f_per_image": f["curve"].max(),
        "mean_f": f["curve"].mean(),
        "adaptive_f": f["adp"],
        "weighted_f": results["wfm"],
        "s_measure": results["sm"],
        "max_e": e["curve"].max(),
        "mean_e": e["curve"].mean(),
        "adaptive_e": e["adp"],
    }


def score(pairs, batch, stretch=True):
    metrics = SaliencyMetrics(stretch)
    for start in range(0, len(pairs), batch):
        some = pairs[start : start + batch]
        histograms = [histogram(torch.from_numpy(s), torch.from_numpy(m)) for s, m in some]
        structure = [structural(s, m.astype(np.uint8), stretch) for s, m in some]
        metrics.update(histograms, structure)
    return metrics.results()


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_equals_pysodmetrics(batch):
    # E of one pixel divides by 0; of the pair of two, PySODMetrics' S is nan: a quarter is empty.
    pairs = [pair for pair in odd_set() if pair[1].size > 2]
    ours = score(pairs, batch)
    assert ours["images"] == len(pairs) and ours["empty_masks"] == 2
    for name, value in pysod(pairs).items():
        assert ours[name] == pytest.approx(value, abs=TOLERANCE), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of their S, where a quarter has no pixels
@pytest.mark.parametrize("index", range(len(odd_set())))
def test_every_picture_equals_pysodmetrics(index):
    """One by one, so that no two errors cancel in a mean."""
    pair = odd_set()[index]
    ours = score([pair], 1)
    for name, value in pysod([pair]).items():
        if not np.isnan(value):  # their S, where a quarter has no pixels
            assert ours[name] == pytest.approx(value, rel=1e-12, abs=1e-6), name
        assert np.isfinite(ours[name])


def test_random_pictures_equal_pysodmetrics():
    """Many nearest pixels at the same distance, masks that touch the border."""
    rng = np.random.default_rng(0)
    for share in (0.01, 0.1, 0.5):
        pair = rng.integers(0, 256, (41, 57), dtype=np.uint8), rng.random((41, 57)) < share
        ours = score([pair], 1)
        for name, value in pysod([pair]).items():
            assert ours[name] == pytest.approx(value, abs=1e-6), (share, name)


def plain_boundary_f(saliency, mask):
    """By scipy, distance by distance."""
    outlines = [x & ~binary_erosion(x, np.ones((3, 3))) for x in (saliency >= 0.5, mask > 0)]
    away = [distance_transform_edt(~outline) for outline in outlines]
    precision = (away[1][outlines[0]] <= 3).mean()
    recall = (away[0][outlines[1]] <= 3).mean()
    return 1.3 * precision * recall / (0.3 * precision + recall)


def test_relaxed_boundary_f():
    mask = np.zeros((60, 60), np.uint8)
    mask[20:40, 20:40] = 1
    shifted = [np.roll(mask, by, axis=1).astype(np.float32) / 2 for by in (3, 4, 9)]
    assert relaxed_boundary_f(shifted[0], mask) == 1
    found = [relaxed_boundary_f(saliency, mask) for saliency in shifted[1:]]
    assert found == pytest.approx([plain_boundary_f(saliency, mask) for saliency in shifted[1:]])
    assert found[1] < found[0] < 1
    saliency, truth = blob((70, 90), 3, 15)
    saliency = saliency.astype(np.float32) / 255
    expected = plain_boundary_f(saliency, truth)
    assert relaxed_boundary_f(saliency, truth.astype(np.uint8)) == pytest.approx(expected)
    empty = np.zeros_like(mask)
    assert relaxed_boundary_f(mask.astype(np.float32), empty) == 0
    assert relaxed_boundary_f(empty.astype(np.float32), mask) == 0


def test_without_stretching():
    """MAE of the map as it is, which stretching would change."""
    saliency, mask = blob((33, 47), 9, 12)
    saliency = saliency // 4 + 30
    plain = np.abs(saliency / 255 - mask).mean()
    assert score([(saliency, mask)], 1, stretch=False)["mae"] == pytest.approx(plain, abs=1e-9)
    assert abs(score([(saliency, mask)], 1)["mae"] - plain) > 0.1


def test_curves():
    """Half of the object found by one threshold, and all the picture by the last."""
    saliency = torch.tensor([[255, 0, 0, 0, 0]], dtype=torch.uint8)
    metrics = SaliencyMetrics()
    metrics.update([histogram(saliency, torch.tensor([[1, 1, 0, 0, 0]]))])
    curves = metrics.curves()
    first, last = ([curves[name][i] for name in ("precision", "recall", "f")] for i in (0, -1))
    assert first == pytest.approx([1, 0.5, 1.3 * 0.5 / (0.3 + 0.5)])
    assert last == pytest.approx([0.4, 1, 1.3 * 0.4 / (0.3 * 0.4 + 1)])


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
    with pytest.raises(ValueError, match="no images"):
        SaliencyMetrics().results()
