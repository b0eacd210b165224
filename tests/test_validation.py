"""validation.py: sets and sources, files, what does not match, and the semantic measures."""

import csv
import json

import numpy as np
import pytest
import torch
from conftest import make_pairs, palette, save, scene
from PIL import Image
from sklearn import metrics as sklearn

import predict
import validation
from src import UserError, build_model, save_model
from train_utils.masks import read_classes
from train_utils.semantic import confusion_matrix, semantic_measures

PLAIN = ["--device", "cpu", "--amp", "off", "--workers", "0"]


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory):
    """Two small sets, called one and two."""
    root = tmp_path_factory.mktemp("sets")
    for name, stems in (("one", "abc"), ("two", "defg")):
        make_pairs(root / name / "images", root / name / "masks", stems)
    return root


@pytest.fixture(scope="module")
def maps(two_sets, weights, tmp_path_factory):
    """What predict.py makes of both."""
    folder = tmp_path_factory.mktemp("maps")
    for name in ("one", "two"):
        argv = [str(two_sets / name / "images"), "--weights", str(weights), "--img-size", "64"]
        assert predict.main([*argv, *PLAIN[:-2], "--output", str(folder / name)]) == 0
    return folder


def rows_of(path):
    found = json.loads(path.read_text())
    return found if isinstance(found, list) else [found]


def test_stored_maps_score_as_the_network(call, two_sets, maps, weights, tmp_path):
    """Every measure of two sets by both ways, in one table; files that hold what it says."""
    data = [two_sets / "one", two_sets / "two"]
    out = {name: tmp_path / name for name in ("s.json", "s.csv", "s.png", "w.png")}
    status, said, err = call(
        validation.main, "--weights", weights, "--pred-dir", maps, "--data-path", *data,
        "--img-size", 64, "--metrics", "all", "--no-normalize", "--json", out["s.json"],
        "--csv", out["s.csv"], "--plot", out["s.png"], "--worst", 2, "--worst-file", out["w.png"],
        *PLAIN,
    )  # fmt: skip
    assert status == 0, err
    table = [line for line in said.splitlines() if line.startswith("| ")]
    assert len(table) == 6 and len({len(line) for line in table}) == 1
    heads = ["set", "maps", "images", "maxF", "MAE", "wF", "relaxF", "S"]
    assert [cell.strip() for cell in table[0].split("|")[1:9]] == heads
    rows = rows_of(out["s.json"])
    assert [(row["data"], "weights" in row) for row in rows] == [
        ("one", True), ("one", False), ("two", True), ("two", False)
    ]  # fmt: skip
    for network, stored in (rows[:2], rows[2:]):
        assert network["images"] == stored["images"] == {"one": 3, "two": 4}[network["data"]]
        assert network["normalize"] is stored["normalize"] is False
        for name in ("mae", "max_f", "weighted_f", "s_measure", "relaxed_boundary_f", "mean_e"):
            assert stored[name] == pytest.approx(network[name], abs=1e-6), name
    assert f"{rows[0]['mae']:.3f}" in table[2]
    with out["s.csv"].open(newline="") as file:
        pictures = list(csv.DictReader(file))
    assert len(pictures) == 14 and {row["normalize"] for row in pictures} == {"False"}
    one = [float(row["mae"]) for row in pictures if row["set"] == "one"]
    assert np.mean(one[:3]) == pytest.approx(rows[0]["mae"], abs=1e-6)
    for name in ("s.png", "w-one-lite.png", f"w-two-{maps.name}.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200


def test_a_single_result_is_a_plain_object(call, two_sets, weights, tmp_path):
    path = tmp_path / "s.json"
    argv = ["--weights", weights, "--data-path", two_sets / "one", "--img-size", 64, *PLAIN]
    status, said, _ = call(validation.main, *argv, "--json", path)
    row = json.loads(path.read_text())
    assert status == 0 and row["img_size"] == 64 and "weighted_f" not in row
    assert "stretched" in said and "64² in float32" in said and "wF" not in said


def test_what_does_not_match_is_listed(call, two_sets, maps, tmp_path):
    """The rest is scored, and the exit status tells."""
    folder = tmp_path / "maps"
    for path in (maps / "one").iterdir():
        if path.stem != "b":
            save(folder / path.name, Image.open(path).resize((30, 20)))
    save(folder / "stranger.png", scene()[1])
    argv = ["--pred-dir", folder, "--data-path", two_sets / "one", "--metrics", "all", *PLAIN]
    status, said, _ = call(validation.main, *argv)
    assert status == 2
    assert "no map of 1 pictures: b" in said and "no mask for 1 maps: stranger.png" in said
    assert "2 maps resized" in said
    assert said.splitlines()[-1].split("|")[3].strip() == "2"


@pytest.mark.parametrize("fault", ["nowhere", "empty", "others", "doubled"])
def test_unusable_map_folders(call, two_sets, maps, tmp_path, fault):
    folder = tmp_path / "maps"
    if fault != "nowhere":
        folder.mkdir()
    if fault == "others":
        save(folder / "x.png", scene()[1])
    if fault == "doubled":
        save(folder / "a.png", scene()[1])
        save(folder / "a.jpg", scene()[1])
    status, _, err = call(
        validation.main, "--pred-dir", folder, "--data-path", two_sets / "one", *PLAIN
    )
    assert status == 2 and str(folder) in err and "Traceback" not in err


def test_nothing_to_score(call, two_sets):
    status, _, err = call(validation.main, "--data-path", two_sets / "one")
    assert status == 2 and "--weights" in err and "--pred-dir" in err


@pytest.fixture
def class_masks(tmp_path):
    """Three classes and 9 for pixels to be left out, grey and palette; and maps of them."""
    rng = np.random.default_rng(0)
    for i in range(3):
        picture, _ = scene(i)
        truth = rng.choice([0, 1, 2, 9], (40, 48)).astype(np.uint8)
        found = np.where(rng.random((40, 48)) < 0.7, truth % 9, rng.integers(0, 3, (40, 48)))
        save(tmp_path / f"images/{i}.jpg", picture)
        mask = palette([(i, 0, 0) for i in range(10)], truth) if i else Image.fromarray(truth)
        save(tmp_path / f"masks/{i}.png", mask)
        save(tmp_path / f"maps/{i}.png", found.astype(np.uint8))
    (tmp_path / "classes.txt").write_text("sky\nroad\ncar\n")
    return tmp_path


def test_classes_against_sklearn(call, class_masks):
    truth, found = (
        np.concatenate([np.array(Image.open(class_masks / f"{part}/{i}.png")) for i in range(3)])
        for part in ("masks", "maps")
    )
    truth, found = truth[truth != 9], found[truth != 9]
    status, said, err = call(
        validation.main, "--pred-dir", class_masks / "maps", "--data-path", class_masks, *PLAIN,
        "--metrics", "semantic", "--num-classes", 3, "--ignore-index", 9,
        "--json", class_masks / "s.json", "--plot", class_masks / "s.png",
    )  # fmt: skip
    assert status == 0, err
    ours = json.loads((class_masks / "s.json").read_text())
    iou = sklearn.jaccard_score(truth, found, average=None)
    assert ours["pixel_accuracy"] == pytest.approx(sklearn.accuracy_score(truth, found))
    expected = sklearn.balanced_accuracy_score(truth, found)
    assert ours["mean_pixel_accuracy"] == pytest.approx(expected)
    expected = sklearn.precision_score(truth, found, average="macro")
    assert ours["mean_precision"] == pytest.approx(expected)
    assert ours["class_iou"] == pytest.approx(iou.tolist())
    assert ours["mean_iou"] == pytest.approx(iou.mean())
    expected = sklearn.jaccard_score(truth, found, average="weighted")
    assert ours["frequency_weighted_iou"] == pytest.approx(expected)
    expected = sklearn.f1_score(truth, found, average="macro")
    assert ours["dice"] == pytest.approx(expected, abs=1e-3)  # ours has 1 added above and below
    assert f"sky {iou[0]:.3f}, road {iou[1]:.3f}" in said
    assert (class_masks / "s.png").stat().st_size > 5000


def test_a_network_of_classes(call, class_masks):
    weights = class_masks / "net.pt"
    save_model(build_model("u2net_lite", out_ch=3), weights)
    argv = ["--weights", weights, "--data-path", class_masks, "--img-size", 48, *PLAIN]
    argv += ["--metrics", "semantic", "--ignore-index", 9, "--num-classes"]
    assert call(validation.main, *argv, 3)[0] == 0
    status, _, err = call(validation.main, *argv, 10)
    assert status == 2 and "3 maps" in err


def test_binary_masks(call, two_sets, maps):
    """Object and background of saliency data, thresholded at a half."""
    status, said, err = call(
        validation.main, "--pred-dir", maps, "--data-path", two_sets / "one", *PLAIN,
        "--metrics", "semantic",
    )  # fmt: skip
    assert status == 0 and "background" in said and "mIoU" in said, err


def test_absent_classes_count_nowhere():
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    found = torch.tensor([[0, 1, 1, 1]], dtype=torch.uint8)
    ours = semantic_measures(confusion_matrix([([found], [truth], [0])], 5))
    assert ours["mean_pixel_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert ours["mean_iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ours["class_iou"][2:] == [None] * 3


def test_dice_of_the_object():
    """(2·Σxy + 1) / (Σx² + Σy² + 1)."""
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    found = torch.tensor([[0, 1, 1, 1]], dtype=torch.uint8)
    ours = semantic_measures(confusion_matrix([([found], [truth], [0])], 2))
    assert ours["dice"] == pytest.approx((2 * 2 + 1) / (2 + 3 + 1))


def test_indices_beyond_the_classes(tmp_path):
    path = save(tmp_path / "m.png", np.full((4, 4), 7, np.uint8))
    assert (read_classes(path, 8) == 7).all()
    assert (read_classes(path, 3, ignore_index=7) == 7).all()
    with pytest.raises(UserError, match=r"index 7.*--num-classes 3"):
        read_classes(path, 3)
    with pytest.raises(UserError, match="RGB"):
        read_classes(save(tmp_path / "c.png", scene()[0]), 3)
