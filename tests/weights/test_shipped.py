"""The weights in the repository: what their card says of them, and that scripts find them."""

import hashlib
import json

import numpy as np
import pytest
from helpers.data import ROOT, make_pairs
from PIL import Image

import predict
import validation
from src import LITE, Predictor, load_model
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
