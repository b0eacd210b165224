"""Sets with a folder for each scene, held out whole; lists of PASCAL VOC and DAVIS."""

import json

import numpy as np
import pytest
from helpers.data import make_pairs, make_palette_image, make_scene, save_image

import validation
from my_dataset import find_pairs, find_splits
from src import UserError
from train_utils.data.masks import mask_reader
from train_utils.data.splits import find_training_data

SCENES = ["bear", "bus", "camel", "dog"]


@pytest.fixture
def davis(tmp_path):
    for scene in SCENES:
        folders = (tmp_path / f"{kind}/480p/{scene}" for kind in ("JPEGImages", "Annotations"))
        make_pairs(*folders, ["00000", "00001"])
    return tmp_path


def names(found):
    return [pair.name for pair in found.pairs]


def test_scenes_are_held_out_whole(davis):
    train, test = find_splits(davis)
    assert len(names(train)) == 6 and len(names(test)) == 2
    (scene,) = {name.split("/")[0] for name in names(test)}
    assert not any(name.startswith(f"{scene}/") for name in names(train))
    assert names(find_pairs(davis)) == [f"{s}/0000{i}" for s in SCENES for i in (0, 1)]
    assert any("one scene in ten is held out" in note for note in test.notes)
    assert f"4 scenes in {davis / 'JPEGImages/480p'}" in test.notes


@pytest.mark.parametrize("form", ["scenes", "paths", "train.txt"])
def test_lists(davis, form):
    """Of 2017 and 2016, and in the set's own folder."""
    line = "/JPEGImages/480p/{0}/0000{1}.jpg /Annotations/480p/{0}/0000{1}.png"
    for split, scenes in (("train", SCENES[:3]), ("val", SCENES[3:])):
        lines = scenes
        if form == "paths":
            lines = [line.format(scene, i) for scene in scenes for i in (0, 1)]
        place = davis if form == "train.txt" else davis / "ImageSets/2017"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{split}.txt").write_text("\n".join(lines))
        if form == "scenes":
            (davis / "ImageSets/2016").mkdir(exist_ok=True)
            (davis / f"ImageSets/2016/{split}.txt").write_text(lines[0])
    (train,), val = find_training_data([davis])
    assert val.split == "val"
    assert {name.split("/")[0] for name in names(train)} == set(SCENES[:3])
    assert names(val) == ["dog/00000", "dog/00001"]


def test_scenes_with_folders_of_their_own(tmp_path):
    """As DAVSOD comes: images and masks in each scene, beside others that are not used."""
    for scene in SCENES:
        make_pairs(
            *(tmp_path / scene / kind for kind in ("Imgs", "GT_object_level")), ["0001", "2"]
        )
        save_image(tmp_path / scene / "GT_instance_level/0001.png", make_scene(9)[1])
    train, test = find_splits(tmp_path)
    assert sorted(names(train) + names(test)) == sorted(
        f"{s}/{i}" for s in SCENES for i in ("0001", "2")
    )
    (scene,) = {name.split("/")[0] for name in names(test)}
    assert not any(name.startswith(f"{scene}/") for name in names(train))
    assert all(pair.mask.parent.name == "GT_object_level" for pair in train.pairs)
    assert f"4 scenes in {tmp_path}" in test.notes
    assert not any("images of" in note for note in test.notes)
    (tmp_path / "test.txt").write_text("bus\n")
    assert names(find_pairs(tmp_path, "test")) == ["bus/0001", "bus/2"]
    (tmp_path / "camel/GT_object_level").rename(tmp_path / "camel/lost")
    with pytest.raises(UserError, match="camel/GT_object_level: no such folder"):
        find_pairs(tmp_path)
    assert len(names(find_pairs(tmp_path, skip_invalid=True))) == 6


def test_faults_in_scenes(davis):
    (davis / "Annotations/480p/bus/00001.png").unlink()
    with pytest.raises(UserError, match=r"bus/00001\.jpg: no mask 00001"):
        find_pairs(davis)
    assert len(find_pairs(davis, skip_invalid=True).pairs) == 7
    make_pairs(davis / "JPEGImages/1080p/bear", davis / "Annotations/1080p/bear", ["00000"])
    with pytest.raises(UserError, match="one set several times, as 1080p, 480p"):
        find_pairs(davis)
    folders = (davis / "JPEGImages/480p", davis / "Annotations/480p")
    found = find_pairs(image_dir=folders[0], mask_dir=folders[1], skip_invalid=True)
    assert len(found.pairs) == 7


def test_maps_of_scenes_are_scored(davis, call, tmp_path):
    for scene in SCENES:
        for i in (0, 1):
            save_image(davis / f"maps/{scene}/0000{i}.png", make_scene(i)[1])
    argv = ["--pred-dir", davis / "maps", "--data-path", davis, "--device", "cpu", "--workers", 0]
    files = ["--json", tmp_path / "s.json", "--csv", tmp_path / "s.csv"]
    status, _, err = call(validation.main, *argv, *files)
    assert status == 0, err
    row = json.loads((tmp_path / "s.json").read_text())
    assert row["images"] == 8 and row["mae"] == 0 and row["missing"] == row["extra"] == []
    assert "bear/00001" in (tmp_path / "s.csv").read_text()


def test_pascal_voc(tmp_path):
    """Of many images, those that Segmentation lists; Annotations holds boxes."""
    make_pairs(tmp_path / "JPEGImages", tmp_path / "none", ["a", "b", "c", "d", "e"])
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text("<annotation/>")
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    indices = np.zeros((40, 48), int)
    indices[9:20, 7:30] = 2
    for stem in "abe":
        mask = make_palette_image(colours, indices)
        save_image(tmp_path / f"SegmentationClass/{stem}.png", mask)
    for place, listed in (("Segmentation", "ab"), ("Main", "abcd")):
        folder = tmp_path / "ImageSets" / place
        folder.mkdir(parents=True)
        (folder / "train.txt").write_text(f"{listed[0]}\n")
        (folder / "val.txt").write_text("\n".join(listed[1:]))
    (train,), val = find_training_data([tmp_path])
    assert (names(train), names(val)) == (["a"], ["b"])
    assert "3 images are in none of the lists, such as c: not used" in train.notes, train.notes
    assert train.pairs[0].load_mask().sum() == 11 * 23
    assert names(find_pairs(tmp_path)) == ["a", "b"]
    found = find_pairs(tmp_path, read=mask_reader(21, 255))
    assert found.class_names[2] == "bicycle" and set(np.unique(found.pairs[0].load_mask())) == {
        0,
        2,
    }
    assert any("19 classes occur in no mask: aeroplane, bird" in note for note in found.notes)
    (tmp_path / "classes.txt").write_text("\n".join(f"kind {i}" for i in range(21)))
    assert find_pairs(tmp_path, read=mask_reader(21, 255)).class_names[2] == "kind 2"
