"""predict.py --boxes, --margin and --strip."""

import csv
import io
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.data import ROOT, save_image
from helpers.processes import ranks
from PIL import Image

import predict
from src import UserError, build_model, save_model
from src.inference.predictor import Predictor
from train_utils.boxes import collect_boxes, read_boxes

HEADER = ["image", "x", "y", "width", "height"]


@pytest.fixture(autouse=True)
def bright_is_object(monkeypatch):
    """In place of a network's map, how red an image is."""
    monkeypatch.setattr(Predictor, "resize", lambda self, saliency, size: saliency)
    monkeypatch.setattr(
        "predict.render_with_box",
        lambda image, _, *rest, **kw: RENDER(
            image, np.array(image.convert("RGB"))[..., 0] / 255, *rest, **kw
        ),
    )


RENDER = predict.render_with_box


@pytest.fixture
def album(tmp_path):
    """Two with an object, one of them on its side; one without; one torn; a comma in a name."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    save_image(tmp_path / "album/empty.png", pixels)
    pixels[10:20, 30:50] = 255
    save_image(tmp_path / "album/a, b.png", pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(tmp_path / "album/turned.png", pixels, exif=exif)
    (tmp_path / "album/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    return tmp_path / "album"


def size(path):
    with Image.open(path) as image:
        return image.size


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def expected(album, near=0):
    return [
        HEADER,
        [str(album / "a, b.png"), *map(str, (30 - near, 10 - near, 20 + 2 * near, 10 + 2 * near))],
        [str(album / "empty.png"), "", "", "", ""],
        [
            str(album / "turned.png"),
            *map(str, (20 - near, 30 - near, 10 + 2 * near, 20 + 2 * near)),
        ],
    ]


@pytest.mark.parametrize("flags", [(), ("--mode", "cutout", "--crop"), ("--size", 20)])
def test_a_row_for_each_image(run, album, tmp_path, flags):
    """In pixels of the upright original, whatever is made of it."""
    out, boxes = tmp_path / "out", tmp_path / "deep/boxes.csv"
    status, _, err = run(album, "--output", out, "--boxes", boxes, *flags)
    assert status == 2 and "torn.png" in err
    assert rows(boxes) == expected(album)
    if "--crop" in flags:
        assert size(out / "a, b.png") == (20, 10)
        assert size(out / "turned.png") == (10, 20)
        assert size(out / "empty.png") == (60, 40)


@pytest.mark.parametrize("margin", ["2", "2px", "10%"])
def test_boxes_have_the_margin(run, album, tmp_path, margin):
    boxes = tmp_path / "boxes.csv"
    run(album, "--output", tmp_path / "out", "--boxes", boxes, "--margin", margin, "--crop")
    assert rows(boxes) == expected(album, 2)
    assert size(tmp_path / "out/turned.png") == (14, 24)


def test_skipped_images_keep_their_row(run, album, tmp_path):
    """And those without one are predicted, so that the file is whole in the end."""
    boxes = tmp_path / "boxes.csv"
    argv = (album, "--output", tmp_path / "out", "--boxes", boxes, "--skip-existing")
    (album / "torn.png").unlink()
    assert run(*argv)[0] == 0
    assert "3 already existed" in run(*argv)[1] and rows(boxes) == expected(album)
    kept = rows(boxes)[:3]
    kept[1][1] = "29"
    with open(boxes, "w", newline="") as file:
        csv.writer(file).writerows(kept)
    assert "2 already existed" in run(*argv)[1]
    assert rows(boxes) == [*kept, expected(album)[3]]
    boxes.unlink()
    assert "3 of 3" in run(*argv)[1] and rows(boxes) == expected(album)


def test_rows_of_other_images_stay(run, album, tmp_path, monkeypatch):
    """With --skip-existing, one file for several runs; to standard output beside a result, too."""
    boxes, (header, *all_rows) = tmp_path / "boxes.csv", expected(album)
    argv = ("--output", tmp_path / "out", "--boxes", boxes, "--skip-existing")
    for name in ("turned.png", "a, b.png"):
        assert run(album / name, *argv)[0] == 0
    assert rows(boxes) == [header, all_rows[2], all_rows[0]]
    assert run(album / "empty.png", *argv[:4])[0] == 0
    assert rows(boxes) == [header, all_rows[1]]
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO()))
    assert run(album / "a, b.png", "--output", "-", *argv[2:])[0] == 0
    assert rows(boxes) == [header, all_rows[1], all_rows[0]]


@pytest.mark.parametrize("flags", [(), ("--skip-existing",)])
def test_boxes_go_into_a_pipe(run, album, tmp_path, flags):
    end, start = os.pipe()
    argv = (album / "a, b.png", "--output", tmp_path / "out", "--boxes", f"/dev/fd/{start}")
    status, _, err = run(*argv, *flags)
    os.close(start)
    assert status == 0, err
    with open(end, newline="") as file:
        assert list(csv.reader(file)) == expected(album)[:2]


def test_what_was_found_before_an_error_is_written(tmp_path):
    path = tmp_path / "boxes.csv"
    with (
        pytest.raises(KeyboardInterrupt),
        collect_boxes(path, ["a", "b", "c"], {"c": None}) as found,
    ):
        found["b"] = (1, 2, 5, 8)
        raise KeyboardInterrupt
    assert rows(path) == [HEADER, ["b", "1", "2", "4", "6"], ["c", "", "", "", ""]]
    assert read_boxes(path) == {"b": (1, 2, 5, 8), "c": None}


@pytest.mark.parametrize("flags", [(), ("--skip-existing",)])
@pytest.mark.parametrize("text", ["precious notes\n", "image,x,y,width,height\na,1,2\n", "\0"])
def test_no_other_file_is_taken_for_boxes(run, album, tmp_path, text, flags):
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(text)
    status, _, err = run(album, "--output", tmp_path / "out", *flags, "--boxes", boxes)
    assert status == 2 and f"--boxes {boxes}: holds no boxes" in err and "Traceback" not in err
    assert boxes.read_text() == text


def test_boxes_go_into_an_empty_file(run, album, tmp_path):
    boxes = tmp_path / "boxes.csv"
    boxes.touch()
    assert run(album / "a, b.png", "--output", tmp_path / "out", "--boxes", boxes)[0] == 0
    assert rows(boxes) == expected(album)[:2]


def test_replaced_files_are_counted(run, album, tmp_path):
    argv = (album / "a, b.png", "--output", tmp_path / "out", "--boxes", tmp_path / "boxes.csv")
    assert "replaced" not in run(*argv)[2]
    assert "2 existing files will be replaced (--skip-existing keeps them)\n" in run(*argv)[2]
    assert "replaced" not in run(*argv, "--skip-existing")[2]
    (tmp_path / "boxes.csv").unlink()  # so its image is predicted again
    assert "1 existing file will be replaced\n" in run(*argv, "--skip-existing")[2]


def test_beside_standard_output(run, album, tmp_path, monkeypatch):
    boxes, out = tmp_path / "boxes.csv", io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", out)
    assert run(album / "a, b.png", "--output", "-", "--boxes", boxes)[0] == 0
    assert rows(boxes) == expected(album)[:2]
    assert Image.open(io.BytesIO(out.buffer.getvalue())).size == (60, 40)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--margin", "5"), "--margin goes with --crop or --boxes"),
        (("--margin", "much"), "--margin much: choose pixels"),
        (("--crop", "--margin", "much"), "--margin much: choose pixels"),
        (("--suffix", "_m", "--output", "a.png"), "--suffix goes with a folder of results"),
        (("--suffix", "_m", "--output", "-"), "--suffix goes with a folder of results"),
        (("--suffix", "a/m"), "--suffix a/m: is a part of a name"),
        (("--boxes", "a.png"), "'a.png' is not the name of a .csv file"),
        (("--threshold", "1.5"), "--threshold 1.5: choose one from 0 to 1"),
    ],
)
def test_flags_that_do_not_go(run, album, tmp_path, flags, words):
    status, _, err = run(album, "--output", tmp_path / "out", *flags)
    assert status == 2 and words in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_boxes_do_not_go_into_the_image(album, weights, tmp_path):
    argv = [album / "a, b.png", "--weights", weights, "--output", "-", "--boxes"]
    for place in ("/dev/stdout", tmp_path / "both.csv"):
        with (tmp_path / "both.csv").open("wb") as out:
            command = [sys.executable, ROOT / "predict.py", *argv, place]
            done = subprocess.run(
                list(map(str, command)), stdout=out, stderr=subprocess.PIPE, text=True
            )
        assert done.returncode == 2
        assert "the image is written there; name another file" in done.stderr
        assert not (tmp_path / "both.csv").read_bytes()


def test_boxes_are_no_input(run, album, tmp_path):
    before = (album / "a, b.png").read_bytes()
    (album / "data.csv").symlink_to(album / "a, b.png")
    argv = (album / "a, b.png", "--output", tmp_path / "out", "--boxes", album / "data.csv")
    status, _, err = run(*argv)
    assert status == 2 and "--boxes" in err and "name another file" in err
    assert (album / "a, b.png").read_bytes() == before
    (album / "none.png").touch()
    (album / "more.csv").symlink_to(album / "none.png")
    argv = (album / "none.png", "--output", tmp_path / "out", "--boxes", album / "more.csv")
    status, _, err = run(*argv)
    assert status == 2 and "--boxes" in err and "overwrite" in err


def test_ranks_fill_one_file(album, tmp_path, weights):
    (album / "torn.png").unlink()
    boxes = tmp_path / "boxes.csv"
    argv = [str(album), "--output", str(tmp_path / "out"), "--weights", str(weights)]
    argv += ["--img-size", "32", "--device", "cpu", "--boxes", str(boxes), "--threshold", "0"]
    told = ranks(2, predict.main, argv, group=False)
    assert [status for _, status, _ in told] == [0, 0], told
    sizes = {"a, b.png": (60, 40), "empty.png": (60, 40), "turned.png": (40, 60)}
    assert rows(boxes) == [
        HEADER, *([str(album / n), "0", "0", *map(str, size)] for n, size in sizes.items())
    ]  # fmt: skip


def test_stripped(run, tmp_path):
    exif = Image.Exif()
    exif[271] = "Maker"
    source = save_image(tmp_path / "a.jpg", np.zeros((9, 9, 3), np.uint8), exif=exif)
    for flags, found in (((), "Maker"), (("--strip",), None)):
        status, _, err = run(source, "--mode", "overlay", "--output", tmp_path / "o.png", *flags)
        assert status == 0, err
        with Image.open(tmp_path / "o.png") as result:
            assert result.getexif().get(271) == found


def test_classes_have_no_box(call, tmp_path, album):
    save_model(build_model("u2net_lite", out_ch=3), tmp_path / "w.pt")
    argv = (album, "--output", tmp_path / "out", "--weights", tmp_path / "w.pt", "--img-size", 32)
    status, _, err = call(predict.main, *argv, "--boxes", tmp_path / "b.csv")
    assert status == 2 and "--boxes" in err and not (tmp_path / "b.csv").exists()


def test_reading_names_the_parameter(tmp_path):
    (tmp_path / "b.csv").write_text("x")
    with pytest.raises(UserError, match=r"^boxes "):
        read_boxes(tmp_path / "b.csv")
