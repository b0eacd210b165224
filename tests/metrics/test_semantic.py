"""validation.py --metrics semantic: measures, files and sheets, against scikit-learn's figures."""

import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from helpers.data import make_palette_image, make_scene, save_image
from helpers.processes import ranks
from PIL import Image
from sklearn import metrics as sklearn

import validation
from src import UserError, build_model, save_model
from src.pictures.classes import COLOURS
from train_utils.data.masks import read_classes
from train_utils.metrics import plots
from train_utils.metrics.plots import class_panels
from train_utils.metrics.semantic import evaluate_classes

PLAIN = ["--device", "cpu", "--amp", "off", "--workers", "0"]
SEMANTIC = ["--metrics", "semantic", "--num-classes", 3, "--ignore-index", 9, *PLAIN]


@pytest.fixture
def class_masks(tmp_path):
    """Three classes and 9 for pixels to be left out, grey and palette; and maps of them."""
    rng = np.random.default_rng(0)
    for i in range(3):
        picture, _ = make_scene(i)
        truth = rng.choice([0, 1, 2, 9], (40, 48)).astype(np.uint8)
        found = np.where(rng.random((40, 48)) < 0.7, truth % 9, rng.integers(0, 3, (40, 48)))
        save_image(tmp_path / f"images/{i}.jpg", picture)
        mask = (
            make_palette_image([(i, 0, 0) for i in range(10)], truth)
            if i
            else Image.fromarray(truth)
        )
        save_image(tmp_path / f"masks/{i}.png", mask)
        save_image(tmp_path / f"maps/{i}.png", found.astype(np.uint8))
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


def test_names_of_classes_that_are_no_text(call, class_masks):
    argv = ["--pred-dir", class_masks / "maps", "--data-path", class_masks, *PLAIN]
    argv += ["--metrics", "semantic", "--num-classes", 3, "--ignore-index", 9]
    names = class_masks / "classes.txt"
    names.write_bytes("Gebäude\n".encode("latin-1") * 3)
    status, said, err = call(validation.main, *argv)
    assert status == 2 and "classes.txt: not UTF-8" in err and not said
    names.write_text("sky\nroad\ncar\n", encoding="utf-8-sig")
    assert "IoU of maps on" in (said := call(validation.main, *argv)[1]) and ": sky" in said
    names.write_text("sky\nroad\ncar\nfence\n")
    argv[argv.index("--num-classes") + 1] = 4
    assert call(validation.main, *argv)[1].count("fence –") == 2  # IoU and recall


def test_a_network_of_classes(call, class_masks):
    weights = class_masks / "net.pt"
    save_model(build_model("u2net_lite", out_ch=3), weights)
    argv = ["--weights", weights, "--data-path", class_masks, "--img-size", 48, *PLAIN]
    argv += ["--metrics", "semantic", "--ignore-index", 9, "--num-classes"]
    assert call(validation.main, *argv, 3)[0] == 0
    status, _, err = call(validation.main, *argv, 10)
    assert status == 2 and "u2net_lite, 3 maps) have 3 maps" in err


def test_nothing_but_ignored_pixels(call, class_masks):
    for path in (class_masks / "masks").iterdir():
        save_image(path, np.full((40, 48), 9, np.uint8))
    status, _, err = call(
        validation.main, "--pred-dir", class_masks / "maps", "--data-path", class_masks, *PLAIN,
        "--metrics", "semantic", "--num-classes", 3, "--ignore-index", 9,
    )  # fmt: skip
    assert status == 2 and "ignored" in err


def test_absent_classes_count_nowhere():
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    found = torch.tensor([[0, 1, 1, 1]], dtype=torch.uint8)
    ours = evaluate_classes([([found], [truth], [0])], 5).results
    assert ours["mean_pixel_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert ours["mean_iou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert ours["class_iou"][2:] == [None] * 3


def test_classes_found_where_there_are_none():
    """Their IoU is 0, as in torchmetrics and mmsegmentation; they have no recall."""
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    found = torch.tensor([[0, 2, 1, 1]], dtype=torch.uint8)
    ours = evaluate_classes([([found], [truth], [0])], 4).results
    assert ours["class_iou"] == [0.5, 1, 0, None]
    assert ours["mean_iou"] == pytest.approx(1.5 / 3)
    assert ours["class_accuracy"] == [0.5, 1, None, None]
    assert ours["dice"] == pytest.approx((3 / 4 + 5 / 5 + 1 / 2) / 3)


def test_names_of_classes_by_either_flag(call, class_masks):
    """The same whichever way the folders are named; void is none of them."""
    (class_masks / "classes.txt").write_text("void\nsky\nroad\ncar\n")
    folders = ["--image-dir", class_masks / "images", "--mask-dir", class_masks / "masks"]
    for data in (["--data-path", class_masks], folders):
        argv = ["--pred-dir", class_masks / "maps", *data, *SEMANTIC]
        status, said, err = call(validation.main, *argv)
        assert status == 0, err
        assert re.search(r"IoU of .*: sky 0\.\d+, road 0\.\d+, car 0\.\d+$", said, re.M), said
    (class_masks / "images/classes.txt").write_text("air\nroad\ncar\n")  # before its parent's
    argv = ["--pred-dir", class_masks / "maps", *folders, *SEMANTIC]
    assert "air 0." in call(validation.main, *argv)[1]
    (class_masks / "images/classes.txt").unlink()
    moved = (class_masks / "masks").rename(class_masks.parent / f"{class_masks.name}-elsewhere")
    argv[argv.index("--mask-dir") + 1] = moved  # no folder of both, whose table it would be
    assert ": 0 0." in call(validation.main, *argv)[1]


def test_dice_of_the_object():
    """(2·Σxy + 1) / (Σx² + Σy² + 1)."""
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    found = torch.tensor([[0, 1, 1, 1]], dtype=torch.uint8)
    ours = evaluate_classes([([found], [truth], [0])], 2).results
    assert ours["dice"] == pytest.approx((2 * 2 + 1) / (2 + 3 + 1))


def test_indices_beyond_the_classes(tmp_path):
    path = save_image(tmp_path / "m.png", np.full((4, 4), 7, np.uint8))
    assert (read_classes(path, 8) == 7).all()
    assert (read_classes(path, 3, ignore_index=7) == 7).all()
    with pytest.raises(UserError, match=r"index 7; with 3 classes.*pass ignore_index 7"):
        read_classes(path, 3)
    with pytest.raises(UserError, match="pixels to ignore hold ignore_index 4 and no other"):
        read_classes(path, 3, ignore_index=4)
    with pytest.raises(UserError, match="if the network has more classes, raise num_classes"):
        read_classes(path, 3, is_map=True)
    with pytest.raises(UserError, match="RGB"):
        read_classes(save_image(tmp_path / "c.png", make_scene()[0]), 3)


def test_each_picture_against_sklearn(call, class_masks):
    """In the CSV, the same from two processes; nothing of a picture that is all to be ignored, and
    nothing of a class that is neither in its mask nor in its map."""
    save_image(class_masks / "masks/2.png", np.full((40, 48), 9, np.uint8))
    truth = np.array(Image.open(class_masks / "masks/1.png"))
    truth[truth == 2] = 9
    save_image(class_masks / "masks/1.png", truth)
    found = np.array(Image.open(class_masks / "maps/1.png"))
    save_image(class_masks / "maps/1.png", found % 2)
    argv = ["--pred-dir", class_masks / "maps", "--data-path", class_masks, *SEMANTIC]
    assert call(validation.main, *argv, "--csv", class_masks / "one.csv")[0] == 0
    with (class_masks / "one.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["0", "1"]
    for row in rows:
        truth, found = (
            np.array(Image.open(class_masks / f"{part}/{row['image']}.png"))
            for part in ("masks", "maps")
        )
        truth, found = truth[truth != 9], found[truth != 9]
        iou = sklearn.jaccard_score(truth, found, average=None)
        assert float(row["mean_iou"]) == pytest.approx(iou.mean(), abs=1e-6)
        expected = sklearn.accuracy_score(truth, found)
        assert float(row["pixel_accuracy"]) == pytest.approx(expected, abs=1e-6)
        each = [float(row[f"iou {name}"]) for name in ("sky", "road", "car")[: len(iou)]]
        assert each == pytest.approx(iou.tolist(), abs=1e-6)
    assert rows[1]["iou car"] == "" and len(iou) == 2
    both = [str(a) for a in (*argv, "--csv", class_masks / "two.csv")]
    assert [result for result, *_ in ranks(2, validation.main, both, group=False)] == [0, 0]
    assert (class_masks / "two.csv").read_text() == (class_masks / "one.csv").read_text()


def test_sheet_of_the_worst(call, class_masks, monkeypatch):
    """Of stored maps and of a network: the lowest mean IoU first, and each as it was scored."""
    drawn = {}
    monkeypatch.setattr(
        plots, "draw_sheet", lambda path, rows, *rest: drawn.update({path.name: rows})
    )
    save_model(build_model("u2net_lite", out_ch=3), class_masks / "net.pt")
    found = np.array(Image.open(class_masks / "masks/1.png"))
    save_image(class_masks / "maps/1.png", np.where(found == 9, 0, 2 - found))
    call(
        validation.main, "--weights", class_masks / "net.pt", "--pred-dir", class_masks / "maps",
        "--data-path", class_masks, "--img-size", 48, *SEMANTIC, "--worst", 2,
        "--worst-file", class_masks / "w.png", "--csv", class_masks / "s.csv",
    )  # fmt: skip
    with (class_masks / "s.csv").open(newline="") as file:
        scores = {(row["maps"], row["image"]): row for row in csv.DictReader(file)}
    assert len(drawn) == 2 and len(scores) == 6
    for name, rows in drawn.items():
        source = "net" if name.endswith("net.png") else "maps"
        ious = sorted(float(row["mean_iou"]) for (maps, _), row in scores.items() if maps == source)
        for (caption, panels), iou in zip(rows, ious, strict=False):
            picture = caption.split(":")[0]
            assert f"mean_iou {iou:.3f}" in caption
            counted = ~(panels.error == 160).all(-1)
            right = (panels.error == 255).all(-1)[counted].mean()
            assert right == pytest.approx(
                float(scores[source, picture]["pixel_accuracy"]), abs=1e-6
            )
        assert len(rows) == 2
    assert drawn[next(name for name in drawn if "maps" in name)][0][0].startswith("1: ")


def test_names_in_chinese(recwarn):
    """Are drawn by a font of the system that has them."""
    plt = plots.pyplot()
    if len(plt.rcParams["font.family"]) == 1:
        pytest.skip("no Chinese font is installed here (fonts-wqy-microhei, say)")
    figure = plt.figure()
    figure.suptitle("天空, road")
    figure.savefig(io.BytesIO())
    plt.close(figure)
    assert not recwarn.list


def test_panels_of_classes():
    picture = np.zeros((1, 3, 3), np.uint8)
    mask, found = (np.array([row], np.uint8) for row in ([0, 1, 9], [0, 2, 1]))
    panels = class_panels(picture, mask, found, 9)
    assert panels.mask.tolist() == [[[0] * 3, COLOURS[1].tolist(), [255] * 3]]
    assert (panels.map == COLOURS[found]).all()
    assert panels.error.tolist() == [[[255] * 3, [220, 30, 30], [160] * 3]]
