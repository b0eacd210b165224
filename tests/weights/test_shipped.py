"""The weights in the repository: what their card says of them, that scripts find them, and the mean
of several runs, which they are."""

import hashlib
import json

import numpy as np
import pytest
import torch
from helpers.data import ROOT, SMALL, make_pairs
from PIL import Image
from torch.optim import swa_utils

import convert
import predict
import validation
from src import LITE, Predictor, build_model, load_model, save_model
from src.weights.load import SHIPPED

CARD = (ROOT / "weights/README.md").read_text(encoding="utf-8")
ECSSD = ROOT.parent / "shared/data/ECSSD"


def test_the_file_is_the_one_of_the_card():
    content = SHIPPED.read_bytes()
    assert len(content) <= 2.6e6 and f"{len(content):,} bytes" in CARD
    assert hashlib.sha256(content).hexdigest() in CARD
    model = load_model(SHIPPED)
    assert model.config == LITE and f"{model.img_size}²" in CARD


def test_scripts_use_it(tmp_path, call):
    make_pairs(tmp_path / "images", tmp_path / "masks", "ab")
    status, _, err = call(
        predict.main, tmp_path / "images/a.jpg", "--output", tmp_path / "a.png", "--device", "cpu"
    )
    assert status == 0 and "u2net_lite.safetensors" in err
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (48, 40)
    argv = ["--data-path", tmp_path, "--json", tmp_path / "s.json", "--device", "cpu"]
    assert call(validation.main, *argv, "--workers", 0)[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["weights"] == str(SHIPPED)


def test_it_finds_a_plain_object():
    """A dark disc on a light ground, without data that the repository must not hold."""
    y, x = np.mgrid[:240, :320]
    disc = np.hypot(y - 120, x - 160) < 60
    picture = np.where(disc[..., None], (150, 40, 30), (190, 200, 180)).astype(np.uint8)
    saliency = Predictor(SHIPPED, device="cpu", amp="off")(picture)
    assert saliency[disc].mean() > 0.7 and saliency[~disc].mean() < 0.2


@pytest.mark.skipif(not ECSSD.is_dir(), reason="ECSSD is not beside the clone")
def test_the_first_pictures_score_as_the_card_says(tmp_path):
    """A fifth of the test split, so within what so few pictures vary by."""
    stems = (ECSSD / "test.txt").read_text().split()[::5]
    for part, suffix in (("images", "jpg"), ("masks", "png")):
        (tmp_path / part).mkdir()
        for stem in stems:
            (tmp_path / part / f"{stem}.{suffix}").symlink_to(ECSSD / part / f"{stem}.{suffix}")
    argv = ["--data-path", str(tmp_path), "--json", str(tmp_path / "s.json"), "--device", "cpu"]
    assert validation.main(argv) == 0
    scores = json.loads((tmp_path / "s.json").read_text())
    line = next(line for line in CARD.splitlines() if "ECSSD test.txt" in line and "|" in line)
    said = [float(cell) for cell in line.split("|")[2:4]]
    assert scores["max_f"] == pytest.approx(said[0], abs=0.05)
    assert scores["mae"] == pytest.approx(said[1], abs=0.03)


def test_average(call, tmp_path):
    """As torch's own averaging has it; counters of batches stay INPUT's."""
    networks, paths = [], [tmp_path / f"{name}.pt" for name in "abc"]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        networks.append(build_model(SMALL))
        networks[-1](torch.randn(2, 3, 64, 64))  # moves batch norm's statistics
        save_model(networks[-1], path)
    theirs = swa_utils.AveragedModel(networks[0].double(), use_buffers=False)
    for network in networks:
        theirs.update_parameters(network.double())
    argv = (paths[0], tmp_path / "mean.pt", "--average-with", *paths[1:], "--img-size", "192")
    status, said, err = call(convert.main, *argv)
    assert status == 0 and all(f"{path}: checkpoint" in said for path in paths), err
    mean = load_model(tmp_path / "mean.pt")
    assert mean.img_size == 192 and mean.config == networks[0].config
    for (name, own), other in zip(mean.named_parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(own.double(), other, atol=1e-6), name
    for name, own in mean.named_buffers():
        each = [network.get_buffer(name) for network in networks]
        expected = torch.stack(each).mean(0) if own.is_floating_point() else each[0]
        assert torch.allclose(own.double(), expected.double(), atol=1e-6), name


def test_shares_of_an_average(call, tmp_path):
    for name in "abc":
        save_model(build_model(SMALL), tmp_path / f"{name}.pt")
    argv = (tmp_path / "a.pt", tmp_path / "mean.pt", "--average-with", tmp_path / "b.pt")
    assert call(convert.main, *argv, "--shares", 2, 1)[0] == 0
    a, b, mean = (load_model(tmp_path / f"{name}.pt").state_dict() for name in ("a", "b", "mean"))
    for name, value in mean.items():
        if value.is_floating_point():
            assert torch.allclose(value, (2 * a[name] + b[name]) / 3, atol=1e-6), name
    for wrong in ((1,), (0, 0), (1, 2, 3)):
        status, _, err = call(convert.main, *argv, "--shares", *wrong)
        assert status == 2 and "--shares: expected 2 numbers" in err


def test_what_cannot_be_averaged(call, tmp_path):
    save_model(build_model(SMALL), tmp_path / "a.pt")
    save_model(build_model(SMALL, out_ch=2), tmp_path / "b.pt")
    for argv, named in (
        (("--average-with", tmp_path / "b.pt"), "b.pt: cannot be averaged with"),
        (("--average-with", tmp_path / "a.pt"), "a.pt: named twice"),
        (("--average-with", tmp_path / "b.pt", tmp_path / "b.pt"), "b.pt: named twice"),
        (("--average-with", tmp_path / "c.pt"), "c.pt: no such weights file"),
        (("--img-size", "96x64"), "expected one side"),
    ):
        status, _, err = call(convert.main, tmp_path / "a.pt", tmp_path / "d.pt", *argv)
        assert status == 2 and named in err, err
    assert not (tmp_path / "d.pt").exists()
    argv = (tmp_path / "a.pt", tmp_path / "b.pt", "--average-with", tmp_path / "b.pt")
    assert call(convert.main, *argv)[0] == 2, "an input would be written over"
