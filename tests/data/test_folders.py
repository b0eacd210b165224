"""The folders of images and masks: the names that sets of the field come with."""

import shutil

import pytest
from helpers.data import make_pairs

import train
import validation
from src import UserError
from train_utils.data.splits import find_pairs, find_splits

STEMS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "ground_truth_mask"),  # ECSSD
        ("imgs", "gt"),  # HKU-IS
        ("Imgs", "GT"),
        ("Image", "Mask"),
        ("images", "gt"),
        ("imgs", "masks"),
        ("im", "gt"),  # DIS5K
        ("images", "annotations"),
        ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        ("datasets/imgs/pascal", "datasets/masks/pascal"),  # PASCAL-S
        ("HKU-IS/imgs", "HKU-IS/gt"),
    ],
)
def test_names_of_the_field(tmp_path, images, masks):
    make_pairs(tmp_path / images, tmp_path / masks, STEMS)
    found = find_pairs(tmp_path)
    assert [pair.image for pair in found.pairs] == [tmp_path / images / f"{s}.jpg" for s in STEMS]
    assert [pair.mask for pair in found.pairs] == [tmp_path / masks / f"{s}.png" for s in STEMS]
    assert any(str(tmp_path / images) in note for note in found.notes)


def test_images_and_masks_stand_above_other_names(tmp_path):
    make_pairs(tmp_path / "images", tmp_path / "masks", STEMS)
    make_pairs(tmp_path / "imgs", tmp_path / "gt", ["x"])
    assert [pair.name for pair in find_pairs(tmp_path).pairs] == STEMS


def test_both_in_one_folder(tmp_path):
    """As MSRA10K comes."""
    make_pairs(tmp_path / "Imgs", tmp_path / "Imgs", STEMS)
    assert [pair.mask.name for pair in find_pairs(tmp_path).pairs] == [f"{s}.png" for s in STEMS]


@pytest.mark.parametrize("names", [("images", "gt", "annotations"), ("images", "imgs", "gt")])
def test_nothing_is_guessed(tmp_path, names, call):
    """What was found is said, and the flags that help, by both scripts."""
    make_pairs(tmp_path / "images", tmp_path / "gt", STEMS)
    for name in names:
        (tmp_path / name).mkdir(exist_ok=True)
    for main in (train.main, validation.main):
        status, _, err = call(main, "--data-path", tmp_path)
        assert status == 2 and len(err.splitlines()) == 1
        assert "--image-dir and --mask-dir" in err and all(f"{name}/" in err for name in names)


def test_two_sets_in_one_folder(tmp_path):
    for name in ("one", "two"):
        make_pairs(tmp_path / name / "images", tmp_path / name / "masks", STEMS)
    with pytest.raises(UserError, match=r"several data sets: .*one, .*two"):
        find_pairs(tmp_path)


def test_folders_of_duts_by_other_names(tmp_path, call):
    for part in ("DUTS-TR", "DUTS-TE"):
        make_pairs(tmp_path / part / "Imgs", tmp_path / part / "gt", [f"{part}{i}" for i in "12"])
    train_part, test_part = find_splits(tmp_path)
    assert len(train_part.pairs) == len(test_part.pairs) == 2
    shutil.move(tmp_path / "DUTS-TE/gt", tmp_path / "DUTS-TE/truth")
    status, _, err = call(validation.main, "--data-path", tmp_path)
    assert status == 2 and "DUTS-TE-Mask: no such folder" in err
    assert "holds Imgs/, truth/" in err and "--image-dir and --mask-dir" in err


def test_what_is_wrong_with_flags_is_told_first(call, tmp_path):
    """Before the data are looked for."""
    for argv, named in (
        (["--crop-size", 400], "--crop-size 400: larger than the image; at most --img-size"),
        (["--loss", "bse"], "--loss"),
        (["--model", "u2net_fool"], "unknown network"),
        (["--pretrained", tmp_path / "none.pt"], "none.pt"),
        (["--loss-weights", 1, 2], "--loss-weights"),
        (["--resume", tmp_path / "none.pt"], "none.pt"),
        (["--device", "mps"], "--device mps"),
    ):
        status, _, err = call(train.main, "--data-path", tmp_path / "nowhere", *argv)
        assert status == 2 and named in err and len(err) < 300, (argv, err)
    assert not list(tmp_path.iterdir())


def test_advice_on_what_was_trained_on(call, tmp_path):
    """Where lists hold images out; where there are none; and for two folders."""
    folders = tmp_path / "images", tmp_path / "masks"
    make_pairs(*folders, STEMS)
    argv = ["--pred-dir", folders[1], "--workers", 0]
    two = ["--image-dir", folders[0], "--mask-dir", folders[1]]
    for data in (["--data-path", tmp_path], two):
        said = call(validation.main, *argv, *data)[1]
        assert "if the network was trained on this set, --split test" in said
        assert "those that train.py takes too" not in said
    for folder in (tmp_path, folders[0]):
        (folder / "test.txt").write_text("a\n")
    for data in (["--data-path", tmp_path], two):
        assert (
            "those that train.py takes too; --split test" in call(validation.main, *argv, *data)[1]
        )
