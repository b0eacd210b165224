"""my_dataset.py, transforms.py and the loaders: layouts, faults by name, masks, augmentation."""

import warnings

import numpy as np
import pytest
import torch
from helpers.data import (
    make_duts,
    make_invalid_dataset,
    make_pairs,
    make_scene,
    save_image,
    truncate_file,
)
from PIL import Image, ImageOps

from my_dataset import find_pairs, load_pair
from src import UserError
from train_utils.data.pairs import Pair
from transforms import EvalPreset, TrainPreset


def stems(found):
    return {pair.name for pair in found.pairs}


def split_stems(*args, **options):
    return {s: stems(find_pairs(*args, split=s, **options)) for s in ("train", "test", "all")}


def faults_of(*args, **options):
    with pytest.raises(UserError) as error:
        find_pairs(*args, **options)
    return str(error.value)


def test_duts_layout(duts):
    """Without a split, what there is to score is DUTS-TE."""
    found = split_stems(duts)
    assert found["train"] == {f"tr{i}" for i in range(4)}
    assert found["test"] == {f"te{i}" for i in range(3)} == stems(find_pairs(duts))
    assert found["all"] == found["train"] | found["test"]


def test_half_of_duts(tmp_path):
    """DUTS-TE alone is scored whole and never trained on; DUTS-TR alone is split."""
    root = make_duts(tmp_path, train=0, test=30)
    assert len(find_pairs(root).pairs) == len(find_pairs(root, "test").pairs) == 30
    assert "DUTS-TR" in faults_of(root, "train")
    found = split_stems(make_duts(tmp_path / "other", train=30, test=0))
    assert found["test"] and found["train"] == found["all"] - found["test"]


def test_lists_choose_the_splits(tmp_path, folders):
    """A split without its list is what the other list leaves; blank lines mean nothing."""
    make_pairs(*folders, "abcde")
    (tmp_path / "test.txt").write_text("d\n\n  b \n")
    assert split_stems(tmp_path) == {"train": set("ace"), "test": set("bd"), "all": set("abcde")}
    (tmp_path / "train.txt").write_text("\ufeffa\r\nc\r\n", "utf-8")  # as Windows' Notepad saves
    assert split_stems(tmp_path)["train"] == set("ac")
    assert stems(find_pairs(tmp_path)) == set("abcde")


def test_a_val_list(tmp_path, folders):
    """Held out of training beside test.txt, and to be had by its name alone."""
    make_pairs(*folders, "abcdef")
    assert "val.txt" in faults_of(tmp_path, "val")
    (tmp_path / "test.txt").write_text("d\nb\n")
    (tmp_path / "val.txt").write_text("a\n")
    assert split_stems(tmp_path)["train"] == set("cef")
    assert stems(find_pairs(tmp_path, "val")) == {"a"}
    (tmp_path / "val.txt").write_text("a\nb\n")
    assert "b is in val.txt and in test.txt" in faults_of(tmp_path, "train")


def test_two_folders_anywhere(tmp_path):
    make_pairs(tmp_path / "x", tmp_path / "y" / "z", "ab")
    found = find_pairs(image_dir=tmp_path / "x", mask_dir=tmp_path / "y" / "z")
    assert stems(found) == set("ab")
    assert all(pair.mask.parent.name == "z" for pair in found.pairs)
    for half in ({"image_dir": tmp_path / "x"}, {"mask_dir": tmp_path / "x"}):
        assert "mask_dir" in faults_of(**half)


def test_hold_out_is_disjoint_complete_and_stable(tmp_path, folders):
    make_pairs(*folders, [f"p{i:02d}" for i in range(40)])
    before = split_stems(tmp_path)
    assert before["test"] == {"p25", "p26", "p27"}
    assert before["train"] == before["all"] - before["test"]
    make_pairs(*folders, [f"q{i:02d}" for i in range(20)])
    after = split_stems(tmp_path)
    assert {s for s in after["test"] if s[0] == "p"} == before["test"]
    assert after["train"] | after["test"] == after["all"] and not after["train"] & after["test"]


def test_small_sets_hold_one_out(tmp_path, folders):
    """And of a single picture, which leaves none to train on, the message says what to do."""
    make_pairs(*folders, "x")
    assert stems(find_pairs(tmp_path, "test")) == {"x"}
    assert "list some names in train.txt, or add images" in faults_of(tmp_path, "train")
    make_pairs(*folders, "xyz")
    assert split_stems(tmp_path) == {"train": set("yz"), "test": {"x"}, "all": set("xyz")}


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".Png", ".bmp", ".TIF", ".tiff", ".WebP"])
def test_suffixes_and_letter_case(folders, suffix):
    picture, mask = make_scene()
    save_image(folders[0] / f"a.b{suffix}", picture)
    save_image(folders[1] / "a.b.PNG", mask)
    (found,) = find_pairs(folders[0].parent).pairs
    assert found.name == "a.b" and load_pair(found)[1].sum() == (mask > 0).sum()


def test_all_faults_together_by_name(tmp_path, folders):
    named = make_invalid_dataset(*folders)
    report = faults_of(tmp_path)
    assert [name for name in named if name not in report] == []
    assert "skip_invalid" in report and "s1" not in report
    assert report.count("twice:") == 1


def test_bad_values_of_one_mask_have_all_opened(tmp_path, folders):
    """A few tell at first; then each bad one is named."""
    make_pairs(*folders, [f"p{i:02}" for i in range(40)])
    for i in (0, 7, 21):
        mask = np.asarray(Image.open(folders[1] / f"p{i:02}.png"))
        save_image(folders[1] / f"p{i:02}.png", (mask > 0).astype(np.uint8) * 2)
    report = faults_of(tmp_path)
    assert all(f"p{i:02}.png" in report for i in (0, 7, 21)) and report.count("p0") == 2


def test_of_many_faults_of_a_kind_ten_are_named(tmp_path, folders):
    make_pairs(*folders, [f"p{i:02}" for i in range(30)])
    for i in range(28):
        save_image(folders[1] / f"p{i:02}.png", np.full((40, 48), 2 + i % 5, np.uint8))
    (folders[1] / "p29.png").unlink()
    report = faults_of(tmp_path)
    assert "29 faults" in report and "p09.png" in report and "p10.png" not in report
    assert "… and 18 more like these" in report and "p29.jpg: no mask" in report


def test_folders_within_folders_are_not_looked_into(tmp_path):
    make_pairs(tmp_path / "images/bear", tmp_path / "masks/bear", "ab")
    assert "the folders in it, such as bear, are not searched" in faults_of(tmp_path)


def test_swapped_folders(tmp_path, folders):
    make_pairs(*folders, "ab")
    for name in "ab":
        save_image(folders[0] / f"{name}.jpg", np.full((40, 48, 3), (200, 60, 20), np.uint8))
    report = faults_of(image_dir=folders[1], mask_dir=folders[0])
    assert "are the two folders swapped?" in report


def test_skip_invalid_leaves_them_out_and_counts(tmp_path, folders):
    """Torn pixels behind a sound header, and masks of odd values, are found too."""
    make_invalid_dataset(*folders)
    make_pairs(*folders, ["torn", "tornmask"])
    truncate_file(folders[0] / "torn.jpg")
    truncate_file(folders[1] / "tornmask.png", 0.7)
    found = find_pairs(tmp_path, skip_invalid=True)
    assert stems(found) == {"s0", "s1", "s2", "s3"}
    assert any("8" in note and "left out" in note for note in found.notes), found.notes
    for name in ("s0", "s1", "s2", "s3"):
        (folders[0] / f"{name}.jpg").write_bytes(b"")
    assert "s3.jpg" in faults_of(tmp_path, skip_invalid=True)  # nothing is left


@pytest.mark.parametrize("state", ["empty", "missing"])
def test_folders_empty_or_missing_are_both_named(tmp_path, state):
    if state == "empty":
        for name in ("pics", "segs"):
            (tmp_path / name).mkdir()
    report = faults_of(image_dir=tmp_path / "pics", mask_dir=tmp_path / "segs")
    assert "pics" in report and "segs" in report


def test_no_data_set(tmp_path):
    assert "no-such-place" in faults_of(tmp_path / "no-such-place")
    assert "DUTS-TR" in faults_of(tmp_path) and "data_path" in faults_of()


def test_list_naming_an_absent_picture(tmp_path, folders):
    """Not even when the absent stem is part of another fault's text."""
    make_pairs(*folders, ["first", "second"])
    (folders[1] / "second.png").unlink()
    (tmp_path / "train.txt").write_text("first\nsecond\nsec\n")
    report = faults_of(tmp_path, "train")
    assert "lists sec," in report and "lists second" not in report and "second.jpg" in report


def test_list_that_is_no_text(tmp_path, folders):
    make_pairs(*folders, "ab")
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00a\n\xe4")
    assert "train.txt" in faults_of(tmp_path, "train")


def test_smaller_mask_of_same_aspect(tmp_path, folders):
    """Scaled and counted, without a warning from the conversion to a tensor."""
    make_pairs(*folders, "abc")
    for stem in "ab":
        mask = Image.open(folders[1] / f"{stem}.png")
        save_image(folders[1] / f"{stem}.png", mask.resize((24, 20), Image.Resampling.NEAREST))
    found = find_pairs(tmp_path)
    assert any(note.startswith("2 masks") for note in found.notes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed, pair in enumerate(sorted(found.pairs, key=lambda pair: pair.name)):
            picture, mask = load_pair(pair)
            assert tuple(mask.shape[1:]) == ((20, 24) if pair.rescaled else (40, 48))
            assert EvalPreset(32)(picture, mask)[1] is mask  # scored at its own size
            bright = TrainPreset(48, 48)(picture, mask)
            shown = bright[0].float().mean(0) > 120
            assert (shown != bright[1][0].bool()).float().mean() < 0.08, seed


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_exif_orientation(tmp_path, folders, suffix, orientation):
    """The picture is turned, its upright mask fits, and the header check agrees."""
    picture = Image.fromarray(make_scene()[0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    path = save_image(folders[0] / f"a.{suffix}", picture, exif=exif, **options)
    plain = save_image(tmp_path / f"plain.{suffix}", picture, **options)
    turned = Image.open(plain).convert("RGB")
    turned.getexif()[0x0112] = orientation
    turned = ImageOps.exif_transpose(turned)
    save_image(folders[1] / "a.png", Image.new("L", turned.size, 255))
    (pair,) = find_pairs(tmp_path).pairs
    assert pair == Pair(path, folders[1] / "a.png")
    assert np.array_equal(load_pair(pair)[0].permute(1, 2, 0).numpy(), np.asarray(turned))


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_broken_exif_counts_as_none(tmp_path, folders, suffix):
    """A camera's garbled block costs nothing but the turn that it tells."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save_image(folders[0] / f"a.{suffix}", make_scene()[0], exif=exif)
    plain = save_image(tmp_path / f"plain.{suffix}", make_scene()[0])
    save_image(folders[1] / "a.png", make_scene()[1])
    sound = path.read_bytes()
    path.write_bytes(sound.replace(b"MM\0*", b"MM\xa2*").replace(b"II*\0", b"II*\xa2"))
    assert path.read_bytes() != sound
    picture, mask = load_pair(find_pairs(tmp_path).pairs[0])
    assert np.array_equal(picture.permute(1, 2, 0), np.asarray(Image.open(plain).convert("RGB")))
    assert mask.shape == (1, 40, 48)


def test_joint_augmentation_keeps_mask_on_its_object():
    """Drawn into the picture, the mask must come out where the picture shows it.

    The large picture tells sampling apart: nearest neighbour that takes each cell's corner in
    place of its middle shifts the mask by almost half a pixel.
    """
    mask = np.zeros((1200, 1600), np.uint8)
    mask[317:903, 411:1189] = 1
    picture = torch.from_numpy(np.repeat(mask[None] * 255, 3, axis=0))
    preset, centre = TrainPreset(64, 56), torch.arange(56.0)
    seen, offsets = set(), []
    for seed in range(40):
        torch.manual_seed(seed)
        small, cut = preset(picture, torch.from_numpy(mask)[None])
        shown = small[0] / 255.0
        assert ((shown > 0.5) != cut[0].bool()).float().mean() < 0.03
        middles = [(m.float().sum(1) @ centre) / m.sum() for m in (shown, cut[0])]
        offsets.append(middles[1] - middles[0])  # of the rows, which no flip turns round
        seen.add(tuple(np.argwhere(cut[0].numpy())[0]))
    assert len(seen) > 4  # it does move
    assert abs(sum(offsets) / len(offsets)) < 0.15
