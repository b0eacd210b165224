"""Every measure against PySODMetrics on the same maps."""

import numpy as np
import py_sod_metrics
import pytest
import torch
from scipy.ndimage import (
    binary_dilation,
    binary_erosion,
    distance_transform_edt,
    gaussian_filter,
)

from train_utils.metrics.measures.effort import correction_efforts
from train_utils.metrics.measures.saliency import SaliencyMetrics, histogram, to_levels
from train_utils.metrics.measures.structure import (
    boundary_accuracy,
    relaxed_boundary_f,
    structural,
)
from train_utils.metrics.report import markdown

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
    names += ("HumanCorrectionEffortMeasure",)
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
        "hce": results["hce"],
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


def test_a_centre_between_two_rows():
    """At exactly 671.5, which float32 rounds the other way."""
    saliency = np.random.default_rng(0).integers(0, 100, (1400, 622), dtype=np.uint8)
    mask = np.zeros((1400, 622), bool)
    mask[10:1335, 296:572] = True
    pair = saliency + np.uint8(150) * mask, mask
    assert score([pair], 1)["s_measure"] == pytest.approx(pysod([pair])["s_measure"], abs=1e-6)


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


def plain_boundary_accuracy(saliency, mask):
    """By scipy, with discs drawn row by row as OpenCV's ellipses are."""
    right = (saliency >= 0.5) == (mask > 0)
    means = []
    for step in range(5):
        radius = 1 + int((sum(mask.shape) / 300 - 1) / 5 * step)
        disc = np.zeros((2 * radius + 1, 2 * radius + 1), bool)
        for y in range(-radius, radius + 1):
            half = round((radius**2 - y**2) ** 0.5)
            disc[y + radius, radius - half : radius + half + 1] = True
        near = binary_dilation(mask, disc) & ~binary_erosion(mask, disc, border_value=1)
        means.append(right[near].mean())
    return np.mean(means)


@pytest.mark.parametrize("shape", [(60, 80), (700, 500), (900, 1600)])
def test_boundary_accuracy(shape):
    """Of discs of 1 to several pixels; what is wrong far from the outline has no influence."""
    saliency, mask = blob(shape, 3, 15)
    saliency = saliency.astype(np.float32) / 255
    found = boundary_accuracy(saliency, mask.astype(np.uint8))
    assert found == pytest.approx(plain_boundary_accuracy(saliency, mask), abs=1e-12)
    assert 0.5 < found < 1 and boundary_accuracy(mask.astype(np.float32), mask.view(np.uint8)) == 1
    far = mask.astype(np.float32)
    far[-3:, -3:] = 1 - far[-3:, -3:]
    assert boundary_accuracy(far, mask.view(np.uint8)) == 1
    assert boundary_accuracy(1 - far, np.zeros(shape, np.uint8)) == 0


@pytest.mark.parametrize("scale", [1, 3, 8])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_correction_efforts(scale, share):
    """Of ragged regions, thin and wide, with holes, at the border; as PySODMetrics counts them."""
    rng = np.random.default_rng(scale)
    fields = [gaussian_filter(rng.normal(size=(150, 190)), scale) for _ in range(2)]
    mask = fields[0] > np.quantile(fields[0], 1 - share)
    mixed = fields[0] + 0.7 * fields[1]
    found = (mixed > np.quantile(mixed, 1 - share)).astype(np.float32)
    expected = py_sod_metrics.HumanCorrectionEffortMeasure().cal_hce(found, mask)
    assert correction_efforts(found, mask.astype(np.uint8)) == expected > 50
    small = mask[30:, 20:60].astype(np.uint8), found[30:, 20:60]
    expected = py_sod_metrics.HumanCorrectionEffortMeasure().cal_hce(small[1], small[0] > 0)
    assert correction_efforts(small[1], small[0]) == expected


def test_nothing_to_correct():
    """A disc that is a pixel too large costs nothing, a stray one a click."""
    y, x = np.mgrid[:90, :90]
    far = np.hypot(y - 45, x - 45)
    mask = (far < 20).astype(np.uint8)
    assert correction_efforts((far < 21).astype(np.float32), mask) == 0
    found = mask.astype(np.float32)
    found[2:22, 2:22] = 1
    assert correction_efforts(found, mask) == 1


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


def test_a_name_with_a_bar_is_one_cell_of_the_table():
    table = markdown([{"set": "a|b", "mae": 0.25}], {"set": "set", "mae": "MAE"})
    assert table.splitlines()[-1] == r"| a\|b | 0.250 |"
