"""Which kind of masks a set has: decided by all of them together, or said by the user."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers.data import make_pairs, make_scene, save_image
from helpers.runs import run
from PIL import Image

import train
import validation
from my_dataset import SegmentationDataset, find_pairs
from src import UserError
from train_utils.data.masks import mask_reader
from train_utils.training.losses import DeepSupervision
from transforms import TrainPreset

PLAIN = ["--device", "cpu", "--amp", "off", "--workers", "0", "--img-size", "32"]
STEMS = [f"p{i}" for i in range(8)]


def paint(folder, *levels):
    """A mask of one stripe for each level."""
    mask = np.zeros((40, 48), np.uint8)
    for i, level in enumerate(levels):
        mask[5 * i : 5 * i + 5] = level
    return save_image(folder, mask)


@pytest.fixture
def grey_set(folders):
    """As PASCAL-S: subjects' votes; some masks have none above 127, some look like indices."""
    make_pairs(*folders, STEMS)
    for stem in STEMS[:4]:
        paint(folders[1] / f"{stem}.png", 21, 63, 106, 148, 191, 233, 255)
    paint(folders[1] / "p4.png", 21, 63, 106)
    paint(folders[1] / "p5.png", 21)
    paint(folders[1] / "p6.png", 21, 255)
    paint(folders[1] / "p7.png", 1)
    return folders


def test_a_set_of_grey_levels(grey_set):
    """Cut at 127 as the field does; what its single masks look like does not matter."""
    found = find_pairs(grey_set[0].parent)
    sums = {pair.name: int(pair.read(pair.mask).sum()) // (5 * 48) for pair in found.pairs}
    assert sums == {**dict.fromkeys(STEMS[:4], 4), "p4": 0, "p5": 0, "p6": 1, "p7": 0}
    notes = "\n".join(found.notes)
    assert "3 masks come out empty, without a value above 127 of 255, such as" in notes
    assert "1 mask of small numbers and 255 is read as grey" in notes and "p6.png" in notes
    assert "6 of 8 masks are soft (levels between 0 and 255): object where > 127" in notes


def test_empty_masks_are_counted(folders):
    """They may be right, and may be what a tool wrote for images that nobody has annotated."""
    make_pairs(*folders, STEMS)
    for name in ("p1", "p3"):
        paint(folders[1] / f"{name}.png", 0)
    notes = find_pairs(folders[0].parent).notes
    assert [note for note in notes if "empty" in note] == [
        f"2 of the {len(STEMS)} masks inspected are empty: all their values are 0"
    ]


def test_every_split_is_read_as_the_set(grey_set):
    """One that holds doubtful masks alone, too."""
    (grey_set[0].parent / "test.txt").write_text("p4\np6\n")
    found = find_pairs(grey_set[0].parent, "test")
    assert [int(pair.read(pair.mask).sum()) for pair in found.pairs] == [0, 5 * 48]


def test_grey_sets_are_scored_and_trained(grey_set, call, tmp_path, weights):
    argv = ["--data-path", grey_set[0].parent, "--weights", weights, *PLAIN]
    status, said, err = call(validation.main, *argv, "--json", tmp_path / "s.json")
    assert status == 0, err
    row = json.loads((tmp_path / "s.json").read_text())
    assert row["images"] == 8 and row["empty_masks"] == 3 and "3 masks come out empty" in said
    assert run(grey_set[0].parent, tmp_path / "run", "--epochs", "1") == 0


def test_grey_sets_by_the_measures_of_classes(grey_set, call, weights):
    argv = ["--data-path", grey_set[0].parent, "--weights", weights, *PLAIN]
    status, said, err = call(validation.main, *argv, "--metrics", "semantic")
    assert status == 0 and "3 masks come out empty" in said, err
    status, said, err = call(validation.main, *argv, "--masks", "classes")
    assert status == 2 and "--masks classes" in err and "--num-classes" in err


@pytest.mark.parametrize("flags", [["--masks", "binary"], ["--mask-threshold", "127"]])
def test_the_user_has_the_last_word(folders, call, weights, flags):
    """Masks that would be refused are taken as empty, counted and said, in both scripts."""
    make_pairs(*folders, STEMS)
    for stem in STEMS[:6]:
        paint(folders[1] / f"{stem}.png", 3, 38)
    paint(folders[1] / "p6.png", 3, 255)
    data = ["--data-path", folders[0].parent]
    status, _, err = call(validation.main, *data, "--weights", weights, *PLAIN)
    assert status == 2 and "lower --mask-threshold, or --masks binary" in err
    status, said, err = call(validation.main, *data, "--weights", weights, *PLAIN, *flags)
    assert status == 0 and "6 masks come out empty" in said, err
    assert "6 empty masks" in said
    status, said, err = call(train.main, *data, "--model", "none", *flags)
    assert status == 2 and "unknown network" in err


def test_another_threshold(folders):
    make_pairs(*folders, STEMS[:2])
    paint(folders[1] / "p0.png", 21, 38)
    read = find_pairs(folders[0].parent, read=mask_reader(None, threshold=30)).pairs[0].read
    assert read(folders[1] / "p0.png").sum() == 5 * 48
    assert read(folders[1] / "p1.png").sum() == (make_scene(1)[1] > 0).sum()


def test_a_few_that_look_like_indices_in_a_binary_set(folders):
    """Stray values beside 255; a dark mask among binary ones stays a fault."""
    make_pairs(*folders, [f"q{i:02d}" for i in range(20)])
    paint(folders[1] / "q03.png", 2, 255)
    found = find_pairs(folders[0].parent)
    assert any("q03.png" in note for note in found.notes)
    assert found.pairs[3].read(found.pairs[3].mask).sum() == 5 * 48
    for i in (0, 2, 4, 6):
        paint(folders[1] / f"q{i:02d}.png", 38)
    with pytest.raises(UserError, match="would be empty") as error:
        find_pairs(folders[0].parent)
    assert all(f"q{i:02d}.png" in str(error.value) for i in (0, 2, 4, 6))


@pytest.mark.parametrize("levels", [(0, 1, 2, 7), (0, 5, 255)])
def test_indices_of_a_whole_set_stay_refused(folders, levels):
    make_pairs(*folders, STEMS)
    for stem in STEMS:
        paint(folders[1] / f"{stem}.png", *levels)
    with pytest.raises(UserError, match="8 faults"):
        find_pairs(folders[0].parent)


def test_flags_that_do_not_agree(call):
    for argv, named in (
        (["--masks", "classes"], "--num-classes"),
        (["--masks", "binary", "--num-classes", 5], "--masks binary"),
        (["--masks", "soft", "--num-classes", 2], "--masks soft"),
        (["--mask-threshold", 3, "--num-classes", 5], "--mask-threshold 3"),
        (["--masks", "soft", "--classes", "a", "b"], "omit --classes"),
        (["--masks", "classes", "--mask-threshold", 5, "--num-classes", 2], "only; leave it out"),
        (["--mask-threshold", 255], "--mask-threshold"),
        (["--masks", "grey"], "--masks"),
    ):
        status, _, err = call(train.main, "--data-path", "nowhere", *argv)
        assert status == 2 and named in err and len(err.splitlines()) == 1, argv
    for argv, said in (
        (["--masks", "soft"], "--masks soft: levels are scored by --metrics basic or all"),
        (
            ["--masks", "classes", "--mask-threshold", 5],
            "--mask-threshold 5: applies to masks of object",
        ),
    ):
        argv = ["--data-path", "nowhere", "--metrics", "semantic", *argv]
        status, _, err = call(validation.main, *argv)
        assert status == 2 and said in err and "--num-classes" not in err, argv


@pytest.fixture
def soft_set(folders):
    make_pairs(*folders, STEMS)
    ramp = np.tile(np.linspace(0, 255, 48).round().astype(np.uint8), (40, 1))
    for stem in STEMS:
        save_image(folders[1] / f"{stem}.png", ramp)
    return folders, ramp


def test_soft_masks_keep_their_levels(soft_set):
    folders, ramp = soft_set
    found = find_pairs(folders[0].parent, read=mask_reader(None, kind="soft"))
    assert any("8 of 8 masks are soft" in note and "kept" in note for note in found.notes)
    assert (found.pairs[0].read(found.pairs[0].mask) == ramp).all()
    for augment in ("basic", "strong"):
        data = SegmentationDataset(found.pairs, TrainPreset(32, 32, augment, soft=True))
        masks = [data[epoch, 0][1] for epoch in range(12)]
        assert all(mask.dtype == torch.uint8 and len(mask.unique()) > 8 for mask in masks)
    wide = Image.fromarray(ramp.astype(np.uint16) * 257)
    assert (
        abs(found.pairs[0].read(save_image(folders[0] / "w.png", wide)) - ramp.astype(int)).max()
        == 0
    )


@pytest.mark.parametrize("loss", ["bce", "iou", "dice", "bce+iou+ssim"])
def test_losses_of_soft_targets(loss):
    """Of 0 and 255 they are those of 0 and 1; of levels, BCE is least where the map equals them."""
    torch.manual_seed(0)
    logits = [torch.randn(2, 1, 16, 16)]
    hard = torch.randint(0, 2, (2, 1, 16, 16), dtype=torch.uint8)
    plain, soft = DeepSupervision(loss=loss), DeepSupervision(loss=loss, soft=True)
    assert torch.allclose(plain(logits, hard)[0], soft(logits, hard * 255)[0])
    levels = torch.full((1, 1, 16, 16), 51, dtype=torch.uint8)  # 0.2
    at = {
        p: soft([torch.full((1, 1, 16, 16), p).logit()], levels)[0].item() for p in (0.1, 0.2, 0.4)
    }
    if "bce" in loss:
        assert at[0.2] < min(at[0.1], at[0.4])
    assert all(np.isfinite(value) for value in at.values())


def test_scores_of_soft_masks(soft_set, call, tmp_path):
    """The usual ones at the cut, and the mean absolute error of the levels themselves."""
    folders, ramp = soft_set
    for stem in STEMS:
        save_image(tmp_path / f"maps/{stem}.png", ramp)
    argv = ["--pred-dir", tmp_path / "maps", "--data-path", folders[0].parent, "--masks", "soft"]
    files = ["--json", tmp_path / "s.json", "--csv", tmp_path / "s.csv", "--worst", 1]
    sheet = ["--worst-file", tmp_path / "w.png", "--metrics", "all"]
    status, said, err = call(validation.main, *argv, *PLAIN[:-2], *files, *sheet)
    assert status == 0 and "softMAE" in said, err
    row = json.loads((tmp_path / "s.json").read_text())
    assert row["soft_mae"] == 0 and row["max_f"] == pytest.approx(1)
    hard = np.abs(ramp / 255 - (ramp > 127)).mean()
    assert row["mae"] == pytest.approx(hard, abs=1e-6)
    with (tmp_path / "s.csv").open(newline="") as file:
        assert [float(line["soft_mae"]) for line in csv.DictReader(file)] == [0.0] * 8


def test_a_run_on_soft_masks(soft_set, tmp_path):
    flags = ["--masks", "soft", "--loss", "bce+iou", "--augment", "strong", "--epochs", "1"]
    assert run(soft_set[0][0].parent, tmp_path / "run", *flags) == 0
    with (tmp_path / "run/log.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert 0 <= float(row["soft_mae"]) <= 1 and 0 < float(row["loss"]) < 20


def read_all(root, **options):
    found = find_pairs(root, read=mask_reader(None, **options))
    return {
        pair.name: pair.load_mask() if pair.is_drawn else found.read(pair.mask)
        for pair in found.pairs
    }


@pytest.mark.parametrize("kind", ["auto", "binary", "soft"])
def test_a_cutout_without_a_hole(tmp_path, kind):
    """Is all object, whatever its colours show, in a set of cut-outs."""
    photo = make_scene(1)[0]
    for i in range(6):
        alpha = np.full(photo.shape[:2], 255, np.uint8)
        alpha[:, : 8 * i] = 40
        alpha[:, 40:] -= 60
        save_image(tmp_path / f"images/{i}.png", photo)
        save_image(tmp_path / f"masks/{i}.png", np.dstack([photo, alpha]))
    white = 255 if kind == "soft" else 1
    masks = read_all(tmp_path, kind=kind)
    assert (masks["0"][:, :40] == white).all() and (masks["0"][:, 40:] == min(white, 195)).all()
    assert (masks["2"][:, :16] == (40 if kind == "soft" else 0)).all()


@pytest.mark.parametrize("kind", ["binary", "soft"])
def test_a_dark_mask_of_16_bits(tmp_path, kind):
    """Is dark, where others of its set show what white is; where none does, they hold levels up
    to 255."""
    for name, highest in (("all", 40_000), ("few", 200)):
        for i in range(6):
            save_image(tmp_path / name / f"images/{i}.png", make_scene(i)[0])
            levels = np.full((40, 48), 200 if not i else highest, np.uint16)
            levels[:20] = 0
            save_image(tmp_path / name / f"masks/{i}.png", levels)
        dark = read_all(tmp_path / name, kind=kind)["0"].max()
        assert (
            dark
            == {"all": round(200 / 257) * (kind == "soft"), "few": 1 if kind == "binary" else 200}[
                name
            ]
        )
