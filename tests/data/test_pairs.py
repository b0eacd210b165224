"""How masks find their pictures: other names than the same one, and one folder for both."""

import numpy as np
import pytest
from helpers.data import make_pairs, make_scene, save_image

import validation
from my_dataset import find_pairs, find_splits
from src import UserError
from train_utils.config import Settings
from train_utils.metrics.maps import find_maps
from train_utils.training.build import make_datasets


def rename(folder, before="", after=""):
    for path in list(folder.iterdir()):
        path.rename(path.with_stem(before + path.stem + after))


def names(found):
    return [(pair.image.name, pair.mask.name) for pair in found.pairs]


@pytest.mark.parametrize(("before", "after"), [("", "_mask"), ("mask_", ""), ("gt-", ".seg")])
def test_longer_names(folders, before, after):
    """Numbers that are part of one another too; the rule is told."""
    make_pairs(*folders, ["1", "10", "110", "cat", "bobcat"])
    rename(folders[1], before, after)
    found = find_pairs(image_dir=folders[0], mask_dir=folders[1])
    stems = ("1", "10", "110", "bobcat", "cat")
    assert names(found) == [(f"{s}.jpg", f"{before}{s}{after}.png") for s in stems]
    assert f"the masks are called {before}NAME{after}" in found.notes


def test_lists_hold_pictures_names(folders):
    make_pairs(*folders, ["a", "b", "c"])
    rename(folders[1], after="_mask")
    (folders[0].parent / "test.txt").write_text("b\n")
    train_part, test_part = find_splits(folders[0].parent)
    assert names(test_part) == [("b.jpg", "b_mask.png")] and len(train_part.pairs) == 2


def test_one_without_a_mask_is_named(folders):
    make_pairs(*folders, ["a", "b", "c"])
    (folders[1] / "b.png").unlink()
    rename(folders[1], after="_mask")
    save_image(folders[1] / "d_mask.png", make_scene()[1])
    with pytest.raises(UserError, match=r"b\.jpg: no mask b_mask\.\* in"):
        find_pairs(image_dir=folders[0], mask_dir=folders[1])
    (folders[0] / "b.jpg").unlink()
    found = find_pairs(image_dir=folders[0], mask_dir=folders[1])
    assert any("1 mask has no image, such as d_mask" in note for note in found.notes)


@pytest.mark.parametrize("stems", [["x1", "x2", "x3"], ["1", "2", "b_mask"]])
def test_others_are_not_paired(folders, stems):
    """Masks of other pictures; and too few that could be."""
    make_pairs(folders[0], folders[0].parent / "spare", ["a", "b", "b_mask"])
    make_pairs(folders[0].parent / "other", folders[1], stems)
    with pytest.raises(UserError, match=r"a\.jpg: no mask a\.\*"):
        find_pairs(image_dir=folders[0], mask_dir=folders[1])


def test_one_folder_for_both(folders):
    """As MSRA10K comes, JPEG and PNG side by side."""
    both = folders[0]
    make_pairs(both, both, ["a", "b"])
    found = find_pairs(image_dir=both, mask_dir=both)
    assert names(found) == [("a.jpg", "a.png"), ("b.jpg", "b.png")]
    (both / "b.jpg").unlink()
    (both / "a.jpg").unlink()
    with pytest.raises(UserError, match="folder of their own"):
        find_pairs(image_dir=both, mask_dir=both)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_one_folder_for_both_of_one_kind(tmp_path, suffix):
    """Told apart by their names, numbers that are part of one another."""
    both = tmp_path / "both"
    stems = [str(i) for i in range(1, 40)]
    make_pairs(both, tmp_path / "masks", stems, suffix)
    for path in (tmp_path / "masks").iterdir():
        save_image(both / f"{path.stem}_mask.png", make_scene()[1])
    found = find_pairs(image_dir=both, mask_dir=both)
    assert sorted(names(found)) == sorted((f"{s}{suffix}", f"{s}_mask.png") for s in stems)


def test_maps_to_score_too(folders):
    """As predict.py --suffix _mask writes them."""
    make_pairs(*folders, ["a", "b"])
    maps = folders[0].parent / "maps"
    make_pairs(maps, folders[0].parent / "spare", ["a", "b", "c"], ".png")
    rename(maps, after="_mask")
    found = find_maps(maps, find_pairs(image_dir=folders[0], mask_dir=folders[1]).pairs)
    assert [path.name for path in found.paths] == ["a_mask.png", "b_mask.png"]
    assert not found.missing and found.extra == ["c_mask.png"]


@pytest.mark.parametrize("deep", [False, True])
def test_swapped(folders, deep):
    """Told first, by whichever way the files are read."""
    make_pairs(*folders, [str(i) for i in range(12)])
    for path in folders[0].iterdir():
        save_image(path, np.full((40, 48, 3), (200, 60, 20), np.uint8))
    with pytest.raises(UserError) as error:
        find_pairs(image_dir=folders[1], mask_dir=folders[0], skip_invalid=deep)
    assert "folders swapped" in str(error.value).splitlines()[1]


def test_val_alone(folders, call):
    """Where no test.txt is, the pictures that were held out are val.txt's."""
    make_pairs(*folders, ["a", "b", "c"])
    (folders[0].parent / "val.txt").write_text("b\nc\n")
    (folders[0].parent / "train.txt").write_text("a\n")
    argv = ["--data-path", folders[0].parent, "--pred-dir", folders[1]]
    assert "--split val scores only the ones held out" in call(validation.main, *argv)[1]
    status, _, err = call(validation.main, *argv, "--split", "test")
    assert status == 2 and "val.txt holds some: --split val" in err


def test_folders_in_capitals(tmp_path):
    make_pairs(tmp_path / "Images", tmp_path / "MASKS", ["a", "b"])
    assert len(find_pairs(tmp_path).pairs) == 2


def test_a_run_tells_it_once(folders, tmp_path, capsys):
    make_pairs(*folders, ["a", "b", "c"])
    rename(folders[1], after="_mask")
    make_datasets(Settings(data_path=(tmp_path,)))
    assert capsys.readouterr().out.count("the masks are called NAME_mask") == 1
