"""The number that each class has in masks: by the lines of a table, alike in all data sets."""

import numpy as np
import pytest
from helpers.data import make_pairs, save_image

import validation
from src import UserError, build_model, save_model
from train_utils.data.masks import mask_reader
from train_utils.data.masks.names import number_classes
from train_utils.data.splits import find_pairs, find_training_data

COLOURS = {"road": (128, 64, 128), "car": (0, 0, 142), "tree": (107, 142, 35), "void": (9, 9, 9)}


def coloured_set(root, names, count=12):
    """Masks in vertical bars, one for each of the names; ``classes.txt`` has them in this order."""
    bars = np.concatenate([np.full((40, 12, 3), COLOURS[name], np.uint8) for name in names], 1)
    for i in range(count):
        save_image(root / f"images/{i}.png", bars // 2)
        save_image(root / f"masks/{i}.png", bars)
    lines = [f"{name} {' '.join(map(str, COLOURS[name]))}" for name in names]
    (root / "classes.txt").write_text("\n".join(lines) + "\n")
    return root


def bars_of(root, classes, ignore_index=None):
    """The values of the bars, and the names of the classes."""
    found = find_pairs(root, read=mask_reader(classes, ignore_index))
    mask = found.read(found.pairs[0].mask)
    return mask[20, 6::12].tolist(), found.class_names


@pytest.mark.parametrize(
    ("names", "classes", "ignored", "values", "shown"),
    [
        (["road", "car"], 2, None, [0, 1], ("road", "car")),
        (["road", "car"], 2, 255, [0, 1], ("road", "car")),
        (["road", "car"], 3, None, [1, 2], ("background", "road", "car")),
        (["road", "car", "void"], 2, 255, [0, 1, 255], ("road", "car")),
        (["road", "car", "tree", "void"], 4, 3, [0, 1, 2, 3], ("road", "car", "tree", "void")),
        (["road", "car", "tree", "void"], 4, None, [0, 1, 2, 3], ("road", "car", "tree", "void")),
        (["road", "car", "tree", "void"], 3, 255, [0, 1, 2, 255], ("road", "car", "tree")),
    ],
)
def test_as_many_names_as_classes(tmp_path, names, classes, ignored, values, shown):
    """A class's number is that of its line; else the background is 0."""
    assert bars_of(coloured_set(tmp_path, names), classes, ignored) == (values, shown)


def test_names_of_grey_masks(tmp_path):
    make_pairs(tmp_path / "images", tmp_path / "masks", "abcdef")
    for path in (tmp_path / "masks").iterdir():
        save_image(path, np.arange(40 * 48, dtype=np.uint8).reshape(40, 48) % 4)
    (tmp_path / "classes.txt").write_text("road\ncar\ntree\nvoid\n")
    for ignored in (3, 255):
        found = find_pairs(tmp_path, read=mask_reader(4, ignored))
        assert found.class_names == ("road", "car", "tree", "void")


def test_void_needs_a_number_of_its_own():
    assert number_classes(["cat", "dog", "void"], 3, 255).values["void"] == 255
    with pytest.raises(UserError, match=r"classes: 2 is the number of dog.*pass ignore_index 255"):
        number_classes(["cat", "dog", "void"], 3, 2)


def test_sets_that_number_classes_otherwise(tmp_path, call):
    one = coloured_set(tmp_path / "one", ["road", "car", "tree"])
    other = coloured_set(tmp_path / "other", ["car", "road", "tree"])
    with pytest.raises(UserError, match=r"other: its classes are car, road, tree; of .*one: road"):
        find_training_data([one, other], read=mask_reader(3))
    save_model(build_model("u2net_lite", out_ch=3), tmp_path / "net.pt")
    argv = ["--weights", tmp_path / "net.pt", "--data-path", one, other, "--num-classes", 3]
    argv += ["--metrics", "semantic", "--img-size", 32, "--device", "cpu", "--workers", 0]
    status, _, told = call(validation.main, *argv)
    assert status == 2 and "pass --classes with all names, in the same order" in told
    status, told, _ = call(validation.main, *argv, "--classes", "road", "car", "tree")
    assert status == 0 and "road" in told


@pytest.mark.parametrize("first", [True, False])
def test_names_to_hold_out_that_nothing_has(tmp_path, first):
    """Of any of the sets: what is meant would be trained on."""
    for name in ("one", "two"):
        make_pairs(tmp_path / name / "images", tmp_path / name / "masks", "abcdefgh")
        (tmp_path / name / "val.txt").write_text("a\n")
    wrong = tmp_path / ("one" if first else "two") / "test.txt"
    wrong.write_text("B\nc\n")
    with pytest.raises(UserError, match=r"test.txt: lists B, which has no image"):
        find_training_data([tmp_path / "one", tmp_path / "two"])
    wrong.write_text("b\nc\n")
    training, held_out = find_training_data([tmp_path / "one", tmp_path / "two"])
    assert sorted(len(found.pairs) for found in training) == [5, 7]
    assert [pair.name for pair in held_out.pairs] == ["a"]
