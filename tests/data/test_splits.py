"""No image that is held out is trained on, whatever way the splits are named."""

import json
import os
import shutil

import numpy as np
import pytest
from helpers.annotations import annotate
from helpers.data import make_duts, make_pairs, save_image

from src import UserError
from train_utils.data.layouts import lists
from train_utils.data.splits import find_pairs, find_splits, find_training_data

STEMS = [f"{i:03d}" for i in range(8)]


def write_lists(folder, **lists):
    for name, stems in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(stems) + "\n")


OVERLAPS = {
    "train and test": ({"train": STEMS[:4], "test": STEMS[3:6]}, {"003"}),
    "train and val": ({"train": STEMS[:4], "val": STEMS[3:6], "test": STEMS[6:]}, {"003"}),
    "val and test": ({"val": STEMS[:3], "test": STEMS[2:5]}, {"002"}),
    "all three": (
        {"train": STEMS[:5], "val": STEMS[4:6], "test": [STEMS[4], *STEMS[5:7]]},
        {"004", "005"},
    ),
    "train and val, no test": ({"train": STEMS[:4], "val": STEMS[2:4]}, {"002", "003"}),
    "with suffixes and folders": (
        {"train": ["000.jpg", "images/001.jpg", "002"], "test": ["  001  ", "a/002.png", "003"]},
        {"001", "002"},
    ),
}


def real_files(found):
    return {pair.image.resolve() for pair in found.pairs}


def assert_disjoint(find):
    """``find`` gives a split by its name; val may not exist."""
    try:
        val = real_files(find("val"))
    except UserError:
        val = set()
    train, test = real_files(find("train")), real_files(find("test"))
    assert train and test
    assert not train & (val | test) and not val & test


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("layout", ["data_path", "image_dir", "DUTS-TR"])
def test_lists_that_overlap(tmp_path, layout, overlap):
    """They are refused; with skip_invalid an image stays in test, or else in val, alone."""
    lists, named = OVERLAPS[overlap]
    root = tmp_path / "DUTS-TR" if layout == "DUTS-TR" else tmp_path
    folders = ("DUTS-TR-Image", "DUTS-TR-Mask") if layout == "DUTS-TR" else ("images", "masks")
    images, masks = (root / name for name in folders)
    make_pairs(images, masks, STEMS)
    write_lists(images if layout == "image_dir" else tmp_path, **lists)
    where = {"data_path": tmp_path}
    if layout == "image_dir":
        where = {"image_dir": images, "mask_dir": masks}
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"in (train|val)\.txt and in (val|test)\.txt"):
            find_pairs(split=split, **where)

    def find(split):
        return find_pairs(split=split, skip_invalid=True, **where)

    assert_disjoint(find)
    notes = "".join(find("train").notes)
    assert "left out of" in notes and all(stem in notes for stem in named)
    train, test = find_splits(splits=("train", "test"), skip_invalid=True, **where)
    assert not real_files(train) & real_files(test)
    held_out = {pair.name for pair in test.pairs}
    assert {stem for stem in named if stem in "".join(lists.get("test", ()))} <= held_out


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
@pytest.mark.parametrize("lists", [{"train": ["000", "copy"], "test": ["001"]}, {"test": ["001"]}])
def test_another_name_of_a_held_out_image(tmp_path, link, lists):
    make_pairs(tmp_path / "images", tmp_path / "masks", STEMS[:3])
    getattr(tmp_path / "images/copy.jpg", link)(tmp_path / "images/001.jpg")
    shutil.copy(tmp_path / "masks/001.png", tmp_path / "masks/copy.png")
    write_lists(tmp_path, **lists)
    with pytest.raises(UserError, match=r"the same file as .*001"):
        find_pairs(tmp_path, "train")
    found = find_pairs(tmp_path, "train", skip_invalid=True)
    assert "copy" not in {pair.name for pair in found.pairs}
    assert any("the same file as" in note for note in found.notes)


def test_another_name_without_lists(tmp_path):
    """Both names of one image, of which one is held out by its name alone."""
    make_pairs(tmp_path / "images", tmp_path / "masks", [f"p{i:02d}" for i in range(40)])
    (tmp_path / "images/q00.jpg").symlink_to(tmp_path / "images/p25.jpg")  # p25 is held out
    shutil.copy(tmp_path / "masks/p25.png", tmp_path / "masks/q00.png")
    assert_disjoint(lambda split: find_pairs(tmp_path, split, skip_invalid=True))


def test_duts_te_that_links_to_duts_tr(tmp_path):
    root = make_duts(tmp_path)
    link = root / "DUTS-TE/DUTS-TE-Image/te9.jpg"
    link.symlink_to(root / "DUTS-TR/DUTS-TR-Image/tr0.jpg")
    shutil.copy(root / "DUTS-TR/DUTS-TR-Mask/tr0.png", root / "DUTS-TE/DUTS-TE-Mask/te9.png")
    with pytest.raises(UserError, match=r"tr0\.jpg: the same file as .*te9\.jpg"):
        find_splits(root)
    assert_disjoint(lambda split: find_pairs(root, split, skip_invalid=True))


@pytest.mark.parametrize("first", [True, False])
def test_several_data_sets(tmp_path, first):
    """What one of them holds out is not trained on as a part of another one."""
    one, other = tmp_path / "one", tmp_path / "other"
    make_pairs(one / "images", one / "masks", STEMS[:6])
    make_pairs(other / "images", other / "masks", ["x", "y", "z"])
    write_lists(one, test=STEMS[4:6])
    write_lists(other, test=["z"])
    (other / "images/w.jpg").symlink_to(one / "images/005.jpg")
    shutil.copy(one / "masks/005.png", other / "masks/w.png")
    paths = [one, other] if first else [other, one]
    with pytest.raises(UserError, match=r"w\.jpg: the same file as .*005\.jpg"):
        find_training_data(paths)
    training, test = find_training_data(paths, skip_invalid=True)
    held_out = {(one / f"images/{stem}.jpg").resolve() for stem in STEMS[4:6]}
    assert [found.split for found in training] == ["train", "train"] and test.split == "test"
    assert sum(len(found.pairs) for found in training) == 4 + 2
    assert not held_out & set().union(*map(real_files, training))
    for found, path in zip((*training, test), (*paths, paths[0]), strict=True):
        assert all(note.startswith(f"{path}: ") for note in found.notes)
    assert any("left out" in note for found in training for note in found.notes)


def test_images_that_no_list_names(tmp_path):
    """They are counted where both lists are there, and no split takes them; of all, they are."""
    make_pairs(tmp_path / "images", tmp_path / "masks", STEMS)
    write_lists(tmp_path, train=STEMS[:3], test=STEMS[3:4])
    (train,), test = find_training_data([tmp_path])
    note = "4 images are in none of the lists, such as 004: not used"
    assert (len(train.pairs), len(test.pairs), note in train.notes) == (3, 1, True)
    whole = find_pairs(tmp_path, "all")
    assert len(whole.pairs) == 8 and note not in whole.notes


def test_val_list_alone(tmp_path):
    """What it leaves is trained on, and is no test split at the same time."""
    make_pairs(tmp_path / "images", tmp_path / "masks", STEMS)
    write_lists(tmp_path, val=STEMS[:2])
    (train,), val = find_training_data([tmp_path])
    assert [pair.name for pair in train.pairs] == STEMS[2:] and val.split == "val"
    assert [pair.name for pair in val.pairs] == STEMS[:2]
    with pytest.raises(UserError, match=r"no images for the test split.*val\.txt holds some"):
        find_pairs(tmp_path, "test")


def test_names_that_look_like_suffixes(tmp_path):
    """An image called p.png.jpg keeps its whole stem, beside one called p."""
    make_pairs(tmp_path / "images", tmp_path / "masks", ["p", "p.png", "q", " r"])
    write_lists(tmp_path, test=["p.png", " r"])
    assert {pair.name for pair in find_pairs(tmp_path, "test").pairs} == {"p.png", " r"}
    assert {pair.name for pair in find_pairs(tmp_path, "train").pairs} == {"p", "q"}


def test_an_unreadable_list_is_no_empty_one(tmp_path):
    """Else all that it holds out would be trained on."""
    make_pairs(tmp_path / "images", tmp_path / "masks", STEMS)
    write_lists(tmp_path, test=STEMS[:2])
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00a\n\xe4")
    with pytest.raises(UserError, match=r"val\.txt"):
        find_pairs(tmp_path, "train", skip_invalid=True)


def test_swapped_folders_are_no_fault(folders):
    """The question is asked where the images are masks, and is not counted."""
    make_pairs(*folders, [str(i) for i in range(12)])
    for path in folders[0].iterdir():
        save_image(path, np.full((40, 48, 3), (200, 60, 20), np.uint8))
    with pytest.raises(UserError) as error:
        find_pairs(image_dir=folders[1], mask_dir=folders[0])
    lines = str(error.value).splitlines()
    assert "12 faults" in lines[0] and "swapped?" in lines[1]
    for path in folders[1].iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError) as error:
        find_pairs(image_dir=folders[0], mask_dir=folders[1])
    assert "12 faults" in str(error.value) and "swapped?" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "stem"),
    [
        ("a ", "a "),  # a trailing space is a part of the name where an image has it
        ("images/a ", "a "),
        ("images/a .png", "a "),
        (" b", "b"),
        ("b.png ", "b"),
        ("p.png", "p.png"),  # of p.png.jpg
        ("images/p.png", "p.png"),
        ("p.png.jpg", "p.png"),
        ("d.jfif", "d"),
        ("x\u2028y", "x\u2028y"),
        (os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"caf\xe9")),
        ("none.png", "none"),
    ],
)
def test_names_in_lists(tmp_path, line, stem):
    stems = {"a ", "b", "p.png", "d", "x\u2028y", os.fsdecode(b"caf\xe9")}
    (tmp_path / "test.txt").write_bytes(os.fsencode(f"{line}\r\n\n"))
    assert lists.read_list(tmp_path / "test.txt", stems) == {stem}


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "test.txt").write_bytes("a\nb\n".encode("utf-16"))
    with pytest.raises(UserError, match=r"test\.txt: not a readable list of names; save it as"):
        lists.read_list(tmp_path / "test.txt", {"a", "b"})


@pytest.mark.parametrize("form", ["annotations", "masks"])
def test_the_image_held_out_is_the_faulty_one(tmp_path, form):
    """Of a small set it may be all that is held out: a sound one takes its place, for every script
    alike."""
    stems = [f"p{i}" for i in range(10)]
    make_pairs(tmp_path / "png/images", tmp_path / "png/masks", stems)
    held_out = find_splits(tmp_path / "png", ["test"])[0].pairs[0].name
    assert len(find_pairs(tmp_path / "png", "test").pairs) == 1
    root = tmp_path / "png"
    if form == "masks":
        (root / f"masks/{held_out}.png").write_bytes(b"torn")
    else:
        root = tmp_path / "set"
        file = annotate(tmp_path / "png", root, "rle") / "annotations/instances_default.json"
        data = json.loads(file.read_text())
        names = {one["id"]: one["file_name"] for one in data["images"]}
        for one in data["annotations"]:
            if names[one["image_id"]].startswith(f"{held_out}."):
                one["category_id"] = 77
        file.write_text(json.dumps(data))
    with pytest.raises(UserError):
        find_splits(root, ["train", "test"])
    train_split, test = find_splits(root, ["train", "test"], skip_invalid=True)
    assert len(test.pairs) == 1 and test.pairs[0].name != held_out
    assert {pair.name for pair in train_split.pairs} == {*stems} - {held_out, test.pairs[0].name}
    for split, found in (("train", train_split), ("test", test)):  # alone, the same
        assert find_pairs(root, split, skip_invalid=True).pairs == found.pairs
    assert held_out in "\n".join(train_split.notes + test.notes)


def test_no_sound_image_is_left(tmp_path):
    make_pairs(tmp_path / "images", tmp_path / "masks", ["a", "b", "c"])
    (tmp_path / "test.txt").write_text("a\n")
    (tmp_path / "masks/a.png").write_bytes(b"torn")
    with pytest.raises(UserError) as error:
        find_splits(tmp_path, ["train", "test"], skip_invalid=True)
    assert "without them, the test split is empty" in error.value.describe()
