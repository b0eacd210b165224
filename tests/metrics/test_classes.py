"""Networks of classes from the masks on: trained, scored, shown in colour, gone on with."""

import csv
import json

import numpy as np
import pytest
import torch
import torchvision
from helpers.data import ROOT, make_pairs, make_scene, save_image
from PIL import Image

import predict
import train
import validation
from src import Predictor, Style, UserError, build_model, load_model, render, save_model
from src.pictures.classes import coloured, most_probable
from src.pictures.images import open_image
from train_utils import cli
from train_utils.data.masks import mask_reader
from train_utils.data.pairs import Pair
from train_utils.training.losses import balanced_weights
from transforms import TrainPreset

NARROW = {"name": "segnet", "width": 8}
PLAIN = ["--device", "cpu", "--amp", "off", "--workers", "0"]
RUN = ["--num-classes", 3, "--ignore-index", 9, "--img-size", 32, "--crop-size", 32, *PLAIN]


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """Bright and dark on grey: three classes, and a border of 9 that is to be left out."""
    root = tmp_path_factory.mktemp("streets")
    for i in range(10):
        picture, mask = make_scene(i)
        indices = (mask > 0).astype(np.uint8)
        picture[:12], indices[:12] = 255, 2
        indices[:, :3] = 9
        save_image(root / f"images/{i}.png", picture)
        save_image(root / f"masks/{i}.png", coloured(indices) if i % 2 else indices)
    (root / "test.txt").write_text("0\n1\n")
    (root / "classes.txt").write_text("ground\nbox\nsky\n")
    (root / "narrow.json").write_text(json.dumps(NARROW))
    return root


def run(streets, folder, *flags):
    argv = ["--data-path", streets, "--model", streets / "narrow.json", "--output-dir", folder]
    return train.main([str(a) for a in (*argv, *RUN, "--batch-size", 4, *flags)])


@pytest.fixture(scope="module")
def finished(streets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    flags = "--epochs", 6, "--eval-interval", 3, "--lr", 1e-2, "--data-shares", 4
    assert run(streets, folder, *flags, "--class-weights", "balanced", "--loss", "ce+dice") == 0
    return folder


def test_a_run(streets, finished, call):
    """It learns; the log's scores are what validation.py says of best.pt."""
    with (finished / "log.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["mean_iou"]]
    best = max(rows, key=lambda row: float(row["mean_iou"]))
    assert float(best["mean_iou"]) > 0.5 and best is not rows[0]
    status, said, err = call(
        validation.main, "--weights", finished / "best.pt", "--data-path", streets, *PLAIN,
        "--split", "test", "--metrics", "semantic", "--num-classes", 3, "--ignore-index", 9,
        "--json", finished / "s.json", "--batch-size", 4,
    )  # fmt: skip
    assert status == 0 and "IoU of best" in said and "recall of best" in said, err
    scores = json.loads((finished / "s.json").read_text())
    assert scores["mean_iou"] == pytest.approx(float(best["mean_iou"]), abs=1e-5)
    assert np.mean(scores["class_accuracy"]) == pytest.approx(scores["mean_pixel_accuracy"])


def test_samples_are_coloured(finished):
    """The sheet shows masks and maps in their classes' colours."""
    sheet = np.array(Image.open(finished / "samples/epoch_0006.png")).reshape(-1, 3)
    shown = {tuple(colour) for colour in np.unique(sheet, axis=0).tolist()}
    assert {(128, 0, 0), (0, 128, 0)} <= shown


def test_the_network_knows_its_classes(streets, finished):
    network = load_model(finished / "best.pt")
    assert network.config.out_ch == 3 and network.config.activation == "softmax"
    assert network.config.width == 8 and network.img_size == 32


def test_resumed(streets, finished, tmp_path):
    """The same flags go on; other weights of the classes would be another run."""
    flags = "--epochs", 1, "--eval-interval", 1
    assert run(streets, tmp_path / "a", *flags) == 0
    assert run(streets, tmp_path / "a", *flags, "--resume", "auto") == 0
    with pytest.raises(UserError, match="class_weights was None"):
        run(streets, tmp_path / "a", *flags, "--resume", "auto", "--class-weights", "balanced")


def test_what_to_ignore_is_not_guessed(streets):
    argv = [a if a != 9 else 8 for a in RUN]
    with pytest.raises(UserError, match="index 9; with 3 classes they are below 3"):
        train.main([str(a) for a in ("--data-path", streets, *argv)])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--num-classes", "1"], "from 2 to 255"),
        (["--ignore-index", "9"], "--num-classes"),
        (["--num-classes", "3", "--ignore-index", "9", "--loss", "bce"], "'bce'"),
        (["--num-classes", "3", "--ignore-index", "9", "--class-weights", "1", "2"], "3 numbers"),
        (["--num-classes", "3", "--ignore-index", "9", "--backbone", "imagenet"], "has none"),
        (["--num-classes", "3", "--ignore-index", "9", "--pretrained", "LITE"], "gives 1 map with"),
        (["--pretrained", "x.pt", "--backbone", "imagenet"], "--backbone"),
        (
            ["--num-classes", "3", "--ignore-index", "9", "--model", "unet"],
            "at least|more than 184",
        ),
    ],
)
def test_flags_that_do_not_agree(call, streets, tmp_path, flags, named):
    flags = [ROOT / "weights/u2net_lite.safetensors" if flag == "LITE" else flag for flag in flags]
    status, _, err = call(
        train.main, "--data-path", streets, "--output-dir", tmp_path / "run", "--img-size", 48,
        *(() if "--model" in flags else ("--model", "u2net_lite")), *PLAIN, *flags,
    )  # fmt: skip
    assert status == 2 and any(n in err for n in named.split("|")) and "Traceback" not in err, err


def test_two_classes_from_saliency_masks(streets, tmp_path):
    """Two maps, as the U-Net of the paper has, learn from masks of object and background."""
    for i in range(4):
        picture, mask = make_scene(i)
        save_image(tmp_path / f"images/{i}.png", picture)
        save_image(tmp_path / f"masks/{i}.png", mask)
    (tmp_path / "test.txt").write_text("0\n")
    argv = ["--data-path", tmp_path, "--model", streets / "narrow.json", "--num-classes", 2]
    argv += ["--img-size", 32, "--crop-size", 32, "--batch-size", 2, "--epochs", 1, *PLAIN]
    assert train.main([str(a) for a in (*argv, "--output-dir", tmp_path / "run")]) == 0
    assert load_model(tmp_path / "run/best.pt").config.out_ch == 2


def test_balanced_weights(streets):
    """Median frequency balancing, written out; a class that no mask has weighs 1."""
    paths = sorted((streets / "masks").iterdir())
    masks = [np.array(Image.open(path)) for path in paths]
    shares = []
    for c in range(3):
        having = [m for m in masks if (m == c).any()]
        shares.append(sum((m == c).sum() for m in having) / sum((m != 9).sum() for m in having))
    expected = [np.median(shares) / share for share in shares]
    pairs = [Pair(path, path, read=mask_reader(4, 9)) for path in paths]
    found = balanced_weights(pairs, 4, 9)
    assert found == pytest.approx([*expected, 1.0])


def test_colours():
    """Those that PASCAL VOC paints background, aeroplane, person, tv monitor and the border in;
    read as a mask, the picture is its indices.
    """
    indices = np.array([[0, 1, 15], [20, 255, 3]], np.uint8)
    image = coloured(indices)
    colours = np.array(image.convert("RGB")).reshape(-1, 3).tolist()
    voc = [[0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192], [128, 128, 0]]
    assert colours == voc
    assert np.array_equal(np.array(image), indices)


def test_nothing_is_pasted_between_classes():
    """Strong augmentation mixes objects into other pictures; classes have none to mix."""
    preset = TrainPreset(48, 40, augment="strong", classes=True)
    picture, mask = make_scene()
    mask = torch.from_numpy(mask)[None] // 255 * 7 + 2
    assert preset.paste == 0 < TrainPreset(48, 40, augment="strong").paste
    for seed in range(8):
        torch.manual_seed(seed)
        _, seen = preset(torch.from_numpy(picture).permute(2, 0, 1), mask)
        assert set(seen.unique().tolist()) <= {2, 9}


def test_pictures_of_classes(call, tmp_path):
    """Of the picture's own size, from a network at its own; each pixel's most probable class."""
    torch.manual_seed(0)
    network = build_model(NARROW, out_ch=5, activation="softmax")
    network.img_size = 64
    weights = tmp_path / "net.safetensors"
    save_model(network, weights)
    predictor = Predictor(weights, device="cpu", amp="off")
    path = save_image(tmp_path / "a.png", make_scene(width=70, height=50)[0])
    prepared = predictor.prepare(Image.open(path))[None]
    resized = torchvision.transforms.functional.resize(
        predictor.probabilities(prepared)[0], [50, 70], antialias=True
    )
    assert np.abs(predictor(path) - resized.numpy()).max() < 1e-5
    argv = [path, "--weights", weights, "--amp", "off", "--device", "cpu", "--output"]
    assert call(predict.main, *argv, tmp_path / "mask.png")[0] == 0
    for image in (open_image(tmp_path / "mask.png"), predictor(open_image(path))):
        assert image.mode == "P" and image.size == (70, 50)
        assert (np.asarray(image) == resized.argmax(0).numpy()).mean() > 0.999
    assert call(predict.main, *argv, tmp_path / "over.jpg", "--mode", "overlay")[0] == 0
    assert open_image(tmp_path / "over.jpg").mode == "RGB"
    assert call(predict.main, *argv, tmp_path / "small.jpg", "--size", 30)[0] == 0
    assert open_image(tmp_path / "small.jpg").size == (30, 21)
    for flags in (["--mode", "cutout"], ["--preset", "rembg"], ["--invert"], ["--crop"]):
        status, _, err = call(predict.main, *argv, tmp_path / "cut.png", *flags)
        assert status == 2 and err.count("5 classes") == 1
    seen_through = Image.new("RGBA", (20, 30), (9, 9, 9, 0))
    over = render(seen_through, predictor.map(seen_through), Style("overlay"))
    assert over.mode == "RGBA" and over.getextrema()[3] == (0, 0)
    assert most_probable(torch.tensor([[[0.5, 0.49]]])).tolist() == [[1, 0]]


def test_two_classes_are_background_and_object(tmp_path):
    """By softmax, the second map is the object's; it can be scored and shown as one."""
    torch.manual_seed(0)
    network = build_model(NARROW, out_ch=2, activation="softmax")
    predictor = Predictor(network, img_size=64, device="cpu", amp="off")
    picture = Image.fromarray(make_scene(width=64, height=64)[0])
    prepared = predictor.prepare(picture)[None]
    assert torch.equal(predictor.maps(prepared), predictor.probabilities(prepared)[:, 1])
    assert predictor(picture).mode == "L"


def palette_of(indices):
    image = Image.fromarray(np.array(indices, np.uint8)).convert("P")
    image.putdata([value for row in indices for value in row])
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    return image


@pytest.mark.parametrize(
    ("mask", "classes", "told"),
    [
        (np.array([[0, 1], [2, 2]], np.uint8), None, "pass --num-classes 3"),
        (np.array([[0, 1], [2, 255]], np.uint8), None, "pass --num-classes 3 --ignore-index 255"),
        (np.array([[0, 0], [255, 255]], np.uint8), 3, "leave --num-classes out"),
        (palette_of([[0, 1], [2, 2]]), 2, "holds index 2; with 2 classes they are below 2"),
    ],
)
def test_another_kind_of_mask(tmp_path, mask, classes, told):
    """Which flag is meant."""
    with pytest.raises(UserError) as error:
        mask_reader(classes)(save_image(tmp_path / "m.png", mask))
    assert told in error.value.describe(cli.flag)


def test_unread_maps_are_named(call, streets, duts, tmp_path):
    for i in range(3):
        save_image(tmp_path / f"te{i}.png", make_scene()[1]).write_bytes(b"x")
    argv = ["--pred-dir", tmp_path, "--data-path", duts, "--workers", 0]
    for metrics in ("basic", "semantic"):
        status, _, err = call(validation.main, *argv, "--metrics", metrics)
        assert status == 2 and "nothing to score" in err and "te0.png: not an image" in err


def test_classes_without_their_number(call, folders):
    make_pairs(*folders, "abc")
    (folders[0].parent / "classes.txt").write_text("ground\nbox\n")
    _, said, _ = call(train.main, "--data-path", folders[0].parent, "--model", "none")
    assert "classes.txt is ignored without --num-classes" in said
    (folders[0].parent / "classes.txt").write_text("ground 0 0 0\nbox 255 255 255\n")
    _, said, _ = call(train.main, "--data-path", folders[0].parent, "--model", "none")
    assert "ignored" not in said, "colours tell the object without a number of classes"


def test_classes_are_no_saliency(call, finished, duts):
    """Their first map is not the object's: it is not scored as if it were."""
    argv = ["--weights", finished / "best.pt", "--data-path", duts, "--workers", 0]
    status, _, err = call(validation.main, *argv)
    assert status == 2 and "--metrics semantic --num-classes" in err


def test_background_and_object(call, duts, tmp_path):
    """A softmax of the two is scored by the object's map, as the maps that predict.py writes."""
    torch.manual_seed(0)
    network = build_model("u2net_lite", out_ch=2, activation="softmax")
    network.img_size = 64
    save_model(network, tmp_path / "two.pt")
    images = duts / "DUTS-TE/DUTS-TE-Image"
    weights = ["--weights", tmp_path / "two.pt", "--device", "cpu", "--amp", "off"]
    assert call(predict.main, images, *weights, "--output", tmp_path / "maps")[0] == 0
    argv = ["--data-path", duts, "--workers", 0, "--no-normalize", "--json"]
    status, said, err = call(validation.main, *weights, *argv, tmp_path / "a.json")
    assert status == 0 and "the second of them of the object" in said + err, err
    status, *_ = call(validation.main, "--pred-dir", tmp_path / "maps", *argv, tmp_path / "b.json")
    found, expected = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "ab")
    assert found["mae"] == pytest.approx(expected["mae"], abs=1e-3)
    assert found["max_f"] == pytest.approx(expected["max_f"], abs=1e-3)
