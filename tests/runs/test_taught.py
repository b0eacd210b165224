"""Runs that learn from a teacher's maps, and from the features of masks."""

import re
import shutil

import numpy as np
import pytest
import torch
from helpers.data import SMALL_TABLE, make_pairs, make_varied_network, same_state, save_image
from helpers.runs import rows, run
from PIL import Image

from src import GT_ENCODER, ISNET, ISNET_LITE, LITE, U2NetConfig, UserError, build_model, save_model
from train_utils import cli
from train_utils.config import Settings
from train_utils.training.build import make_datasets
from train_utils.training.losses import DeepSupervision
from train_utils.training.supervision import (
    fitting,
    has_mask,
    make_mask_encoder,
    mask_encoder_table,
)
from train_utils.training.trainer import Trainer

SHORT = ["--ema", "0", "--epochs", "2", "--eval-interval", "2"]


def last(folder):
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    save_model(make_varied_network(str(SMALL_TABLE)), path)
    return path


def stopped_at(monkeypatch, count):
    """A kill before this step of any trainer, counted from 0."""
    calls, original = [], Trainer.step

    def step(self, batches):
        calls.append(None)
        if len(calls) > count:
            raise KeyboardInterrupt
        return original(self, batches)

    monkeypatch.setattr(Trainer, "step", step)


def resumes_alike(data, tmp_path, count, *flags):
    """A run, and one killed and resumed, end with the same weights; gives the first's folder."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    assert run(data, whole, *SHORT, *flags) == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stopped_at(patch, count)
        run(data, other, *SHORT, *flags, "--save-every", "1")
    assert run(data, other, *SHORT, *flags, "--resume", "auto") == 0
    for part in ("model", "optimizer"):
        assert str(last(other)[part]) == str(last(whole)[part])
    assert same_state(last(other)["model"], last(whole)["model"]) and rows(other) == rows(whole)
    return whole


def test_a_teacher_and_images_without_masks(data, teacher, tmp_path):
    pictures = data / "DUTS-TE/DUTS-TE-Image"
    more = shutil.copytree(pictures, tmp_path / "pictures/inner").parent
    flags = ["--teacher", str(teacher), "--unlabelled", str(more), "--data-shares", "0"]
    whole = resumes_alike(data, tmp_path, 1, *flags)
    record = last(whole)["flags"]
    assert "5 images without masks" in record["images"][1] and record["data_shares"] == [0, 1]
    again = [*SHORT, *flags, "--teacher-weight", "0.1"]
    assert run(data, tmp_path / "again", *again) == 0
    assert same_state(last(tmp_path / "again")["model"], last(whole)["model"]), "no mask has a part"
    assert record["teacher"].startswith("sha256 ") and record["teacher_weight"] == 0.5

    # Another teacher, or none, is another run; the same one may have moved.
    moved = shutil.copy(teacher, tmp_path / "moved.pt")
    run(data, whole, *SHORT, "--teacher", str(moved), *flags[2:], "--resume", "auto")
    other = tmp_path / "other.pt"
    save_model(build_model(str(SMALL_TABLE)), other)
    with pytest.raises(UserError) as refused:
        run(data, whole, *SHORT, "--teacher", str(other), *flags[2:], "--resume", "auto")
    assert "--teacher was 'sha256 " in refused.value.describe(cli.flag)
    with pytest.raises(UserError, match=r"teacher.* was 'sha256 .*, now None"):
        run(data, whole, *SHORT, "--resume", "auto")


NAMES = [f"i{number}" for number in range(9)]


@pytest.mark.parametrize("one_folder", [False, True])
def test_masks_are_no_images_without_masks(folders, capsys, one_folder):
    """Held out or not, or of no image; their number is said."""
    images, masks = folders
    make_pairs(images, masks, NAMES)
    save_image(images.parent / "more.png", np.zeros((40, 40, 3), np.uint8))
    where = {"data_path": images.parent}
    if one_folder:
        where = {"image_dir": images, "mask_dir": images}
        for path in list(masks.iterdir()):
            path.rename(images / f"{path.stem}_mask.png")
    else:
        save_image(masks / "of_none.png", np.zeros((4, 4), np.uint8))
    taught = make_datasets(Settings(**where, unlabelled=images.parent, teacher="u2netp"))[0]
    pairs = taught.pairs
    assert taught.donors == [i for i, pair in enumerate(pairs) if has_mask(pair)]
    assert [pair.image.name for pair in pairs if not has_mask(pair)] == ["more.png"]
    count = 9 if one_folder else 10
    assert f"{count} of its images are masks of the run: left out" in capsys.readouterr().out


def test_masks_of_a_later_sets_test_split_are_no_images(data, folders):
    """Which nothing else of the run reads."""
    make_pairs(*folders, NAMES)
    both = (folders[0].parent, data)
    with pytest.raises(UserError, match="no images without masks in it"):
        make_datasets(Settings(data_path=both, unlabelled=data, teacher="u2netp"))


def test_masks_are_not_seen_where_the_teacher_is_all(data, teacher, tmp_path):
    """Others give the same weights, other than with a share of them."""
    other = shutil.copytree(data, tmp_path / "data")
    for path in (other / "DUTS-TR/DUTS-TR-Mask").iterdir():
        save_image(path, 255 - np.asarray(Image.open(path).convert("L")))
    flags = [*SHORT, "--epochs", "1", "--teacher", str(teacher), "--teacher-weight"]
    for name, folder, share in (("a", data, "1"), ("b", other, "1"), ("c", other, "0.9")):
        assert run(folder, tmp_path / name, *flags, share) == 0
    first, second, third = (last(tmp_path / name)["model"] for name in "abc")
    assert same_state(first, second) and not same_state(first, third)


def test_a_teacher_of_classes(tmp_path, folders):
    make_pairs(*folders, [f"i{n}" for n in range(9)])
    for path in folders[1].iterdir():
        save_image(path, np.asarray(Image.open(path)) // 255)
    network = make_varied_network(str(SMALL_TABLE), out_ch=3, activation="softmax")
    save_model(network, tmp_path / "three.pt")
    flags = [*SHORT, "--epochs", "1", "--teacher", str(tmp_path / "three.pt")]
    args = folders[0].parent, tmp_path / "run", *flags
    with pytest.raises(
        UserError, match="gives 3 maps with softmax; expected 3 channels and 1 map with sigm"
    ):
        run(*args)
    with pytest.raises(UserError, match="gives 3 maps with softmax; expected 3 channels and 4"):
        run(*args, "--num-classes", "4")
    assert run(*args, "--num-classes", "3", "--ignore-index", "2") == 0


def test_features_of_masks(data, tmp_path, capsys):
    """The encoder is trained first, and kept with the checkpoints; killed in either part."""
    flags = ["--feature-supervision"]
    whole = resumes_alike(data, tmp_path, 2, *flags)  # while the encoder is trained
    told = capsys.readouterr().out
    said = r"GT encoder: reproduces masks with an F of \d\.\d{3} after \d+ steps; frozen, short"
    assert re.search(said, told), told
    shutil.rmtree(tmp_path / "other")
    shutil.rmtree(whole)
    resumes_alike(data, tmp_path, 11, *flags)  # 8 steps of the encoder, at most as many as its own
    named = [name for name in rows(whole)[0] if name.startswith("loss_")]
    assert named == ["loss_fused", "loss_side1", "loss_side2", "loss_feature1", "loss_feature2"]
    row = {name: float(value) for name, value in rows(whole)[0].items() if value}
    assert row["loss"] == pytest.approx(sum(row[name] for name in named), rel=1e-4)
    assert last(whole)["mask_encoder"]["training"] is None


def test_it_is_trained_until_it_reproduces_masks(data, tmp_path, monkeypatch, capsys):
    """By F in two tests that follow one another."""
    scores = iter([0.995, 0.3, 0.99, 0.992, 0.1])
    monkeypatch.setattr(fitting, "_score", lambda *args: next(scores))
    assert run(data, tmp_path, *SHORT, "--epochs", "9", "--feature-supervision") == 0
    assert "with an F of 0.992 after 16 steps; frozen" in capsys.readouterr().out


def test_f_of_reproduced_masks():
    wanted = torch.zeros(3, 1, 4, 5, dtype=torch.bool)
    wanted[0, 0, :2], wanted[1, 0, 1:3] = True, True
    found = wanted.clone()
    found[1, 0, 2:] = True
    scores = fitting._f_measure(found, wanted)
    precision, recall = 10 / 15, 1
    expected = 1.3 * precision * recall / (0.3 * precision + recall)
    torch.testing.assert_close(scores[:2], torch.tensor([1, expected]))
    assert scores[2].isnan()


def test_distances_of_features():
    """Of IS-Net the published encoder; means of squares, as officially."""
    torch.manual_seed(0)
    network, loss = build_model("isnet_lite"), DeepSupervision()
    encoder = make_mask_encoder(network, loss, 0, lambda model: model)
    encoder.freeze()
    masks = torch.randint(0, 2, (2, 1, 64, 64), dtype=torch.uint8)
    features = network.maps_and_features(torch.randn(2, 3, 64, 64))[1]
    wanted = encoder.model.maps_and_features(masks.float())[1]
    distances = encoder.compare(features, masks)
    expected = [((a - b) ** 2).mean() for a, b in zip(features, wanted, strict=True)]
    torch.testing.assert_close(distances, torch.stack(expected))
    assert distances.requires_grad and not any(p.requires_grad for p in encoder.model.parameters())


@pytest.mark.parametrize("table", [LITE, ISNET_LITE, LITE.replace(out_ch=5, activation="softmax")])
def test_an_encoder_has_the_sizes_of_a_networks_features(table):
    network = build_model(table)
    encoder = make_mask_encoder(network, DeepSupervision(classes=table.out_ch), 0, lambda m: m)
    masks = torch.zeros(1, 1, 50, 70, dtype=torch.uint8)
    features = network.eval().maps_and_features(torch.zeros(1, 3, 50, 70))[1]
    wanted = encoder.model.eval().maps_and_features(encoder.read(masks))[1]
    assert [f.shape for f in features] == [wanted[i].shape for i in encoder.places]
    assert mask_encoder_table(ISNET) == GT_ENCODER


def test_features_that_cannot_be_compared():
    from dataclasses import replace

    encoder = [replace(LITE.encoder[0], side=True, out_ch=32), *LITE.encoder[1:]]
    encoder[1] = replace(encoder[1], in_ch=32)
    decoder = (*LITE.decoder[:-1], replace(LITE.decoder[-1], in_ch=96))
    table = U2NetConfig("mine", tuple(encoder), decoder)
    with pytest.raises(UserError, match="mine: the features of stage De1 and its encoder stage"):
        mask_encoder_table(table)
