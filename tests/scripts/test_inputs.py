"""predict.py with inputs and outputs of all kinds: nothing is overwritten or left out unsaid."""

import io
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.data import ROOT, make_scene, save_image
from PIL import Image

import predict
from src.pictures.images import open_image
from src.pictures.plan import plan_images, plan_videos
from src.pictures.search import LeftOut

ODD = os.fsdecode(b"caf\xe9")  # a name that is not UTF-8


@pytest.fixture
def plan(monkeypatch, call):
    """``plan(*argv)`` → stderr of predict.py, which ends before anything is computed."""

    def never(*_):
        raise AssertionError("computed before the outputs were checked")

    def plan(*argv):
        monkeypatch.setattr(predict, "Predictor", never)
        status, said, err = call(predict.main, *argv)
        assert (status, said) == (2, "") and err.count("\n") == 1
        return err

    return plan


@pytest.fixture
def photo(tmp_path):
    return save_image(tmp_path / "photo.jpg", make_scene()[0])


@pytest.mark.parametrize("kind", ["same", "folder", "hard", "symbolic"])
def test_the_background_is_no_output(plan, photo, tmp_path, kind):
    background = save_image(tmp_path / "out/photo.png", make_scene(1)[0])
    output = background if kind == "same" else tmp_path / "out"
    if kind in ("hard", "symbolic"):
        output = tmp_path / "other.png"
        (os.link if kind == "hard" else os.symlink)(background, output)
    before = background.read_bytes()
    argv = ("--mode", "background", "--background", background, "--output", output)
    assert "--output" in (err := plan(photo, *argv)) and "would overwrite an input" in err
    assert background.read_bytes() == before
    assert plan_images([photo], tmp_path / "elsewhere")


def test_weights_are_no_output(plan, photo, tmp_path, weights):
    copy = tmp_path / "weights.png"
    copy.write_bytes(weights.read_bytes())
    assert "would overwrite an input" in plan(photo, "--weights", copy, "--output", copy)


@pytest.mark.parametrize("name", ["nosuch.png", "no/such", "nosuch.JPG"])
def test_a_background_that_is_not_there(plan, photo, tmp_path, name):
    assert "no such file" in plan(photo, "--mode", "background", "--background", name)
    text = plan(photo, "--mode", "background", "--background", f"{tmp_path}/")
    assert f"{tmp_path}" in text and "cannot be read" in text


def test_advice_that_works(plan, photo, tmp_path):
    """--skip-existing is advised where it leaves out what is in the way."""
    for flags in ((), ("--skip-existing",)):
        text = plan(photo, "--output", tmp_path, "--format", "jpg", *flags)
        assert "photo.jpg would overwrite an image; name another folder\n" in text
        assert "image; name another file\n" in plan(photo, "--output", photo, *flags)
    save_image(tmp_path / "photo_mask.png", make_scene()[0])
    text = plan(tmp_path, "--output", tmp_path, "--suffix", "_mask")
    assert "name another folder; if it is an earlier result, --skip-existing" in text


def test_videos_of_one_name(tmp_path):
    """They keep their suffix where two results would be the same, as images do."""
    videos = [tmp_path / name for name in ("c.mp4", "c.avi", "d.avi", "d.mov", "two/d.mov")]
    (tmp_path / "two").mkdir()
    for path in videos:
        path.touch()
    names = [job.target.name for job in plan_videos(videos[:4], tmp_path / "out", "_x")]
    assert names == ["c.mp4_x.mp4", "c.avi_x.mp4", "d_x.mp4", "d_x.mov"]
    names = [job.target.name for job in plan_videos(videos[:4], tmp_path / "out", frames=True)]
    assert names == ["c.mp4", "c.avi", "d.avi", "d.mov"]
    with pytest.raises(ValueError, match=r"d\.mov and .*two/d\.mov have the same name"):
        plan_videos(videos[3:], tmp_path / "out")
    with pytest.raises(ValueError, match="would overwrite a video; name another folder"):
        plan_videos(videos[:1], tmp_path)
    with pytest.raises(ValueError, match="would overwrite a video; name another file"):
        plan_videos(videos[:1], videos[0])


def test_frames_do_not_overwrite_the_background(tmp_path):
    background = save_image(tmp_path / "out/film/000007.png", make_scene(1)[0])
    (tmp_path / "film.mp4").touch()
    jobs = plan_videos([tmp_path / "film.mp4"], tmp_path / "out", frames=True)
    with pytest.raises(ValueError, match="would overwrite an input"):
        predict.check_targets(jobs, [background], ".png")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("file/out", "Not a directory"),
        ("file/out.png", "Not a directory"),
        ("/".join(["x" * 200] * 25), "File name too long"),
        ("/proc/none/out", "cannot be written"),
        ("x" * 252 + ".png", "too long"),
        ("folder", "photo.png: is a folder"),
    ],
)
def test_an_output_that_cannot_be_written(plan, photo, tmp_path, output, words):
    """Is said before anything is computed, in one line, and leaves nothing."""
    (tmp_path / "file").touch()
    (tmp_path / "folder/photo.png").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert words in plan(photo, "--output", tmp_path / output)
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_left_out_is_said(run, tmp_path):
    """By kind and number, with a name; every kind of image is taken."""
    album = tmp_path / "album"
    suffixes = ("jfif", "jpg", "jpe", "jp2", "ppm", "tga", "JPG")
    for seed, suffix in enumerate(suffixes):
        save_image(album / f"{seed}.{suffix}", make_scene(seed)[0])
    for name in ("notes.txt", "more.txt", "film.ts", "README", ".hidden.jpg"):
        (album / name).touch()
    save_image(album / "deep/z.png", make_scene()[0])
    (album / "gone.jpg").symlink_to("nowhere.jpg")
    (album / "round").symlink_to(".")
    os.mkfifo(album / "pipe.png")
    (album / ".git").mkdir()
    status, said, err = run(album, "--output", tmp_path / "out")
    assert status == 0 and "7 of 7" in said and len(list((tmp_path / "out").iterdir())) == 7
    line = next(line for line in err.splitlines() if line.startswith("left out: "))
    for part in (
        f"2 .txt files ({album / 'more.txt'}, …)",
        f"1 folder ({album / 'deep'}; --recursive searches folders)",
        f"1 linked folder ({album / 'round'}; name it to search it)",
        f"1 broken link ({album / 'gone.jpg'})",
        f"1 special file ({album / 'pipe.png'})",
        f"1 hidden file ({album / '.hidden.jpg'})",
        f"1 hidden folder ({album / '.git'})",
        f"1 file without a suffix ({album / 'README'})",
        f"1 video ({album / 'film.ts'}; videos need a separate run)",
    ):
        assert part in line, line
    assert len(line.split("), ")) == 9
    status, said, err = run(album, "--output", tmp_path / "all", "--recursive")
    assert status == 0 and "8 of 8" in said and "linked folder" in err and "1 folder" not in err


def test_patterns_say_what_they_pass_over(tmp_path):
    for name in ("a.JPG", "b.jpg", "c.txt", "deep/d.jpg"):
        save_image(tmp_path / name, make_scene()[0]) if "txt" not in name else (
            tmp_path / name
        ).touch()
    left_out = LeftOut()
    jobs = plan_images([tmp_path / "*.jpg"], tmp_path / "out", left_out=left_out)
    assert [job.source.name for job in jobs] == ["a.JPG", "b.jpg"] and not left_out.kinds
    jobs = plan_images([tmp_path / "*"], tmp_path / "out", left_out=left_out)
    assert len(jobs) == 2 and left_out.count() == "1 .txt file, 1 folder"
    jobs = plan_images([tmp_path / "*"], tmp_path / "out", "", ".png", True)
    assert [job.target for job in jobs][2] == tmp_path / "out/deep/d.png"


def test_results_within_a_pattern_are_no_images(tmp_path):
    save_image(tmp_path / "album/a.jpg", make_scene()[0])
    save_image(tmp_path / "album/out/a.png", make_scene()[0])
    left_out = LeftOut()
    pattern, output = tmp_path / "album/**/*.*", tmp_path / "album/out"
    jobs = plan_images([pattern], output, left_out=left_out)
    assert [job.source.name for job in jobs] == ["a.jpg"]
    assert left_out.count() == "1 file of the output folder"
    pattern = tmp_path / "album/out/*.png"  # unless they are what is meant
    assert len(plan_images([pattern], tmp_path / "album")) == 1


def test_patterns_of_videos(tmp_path):
    for name in ("a.ts", "b.MPG", "c.wmv", "d.3gp", "e.txt"):
        (tmp_path / name).touch()
    left_out = LeftOut()
    jobs = plan_videos([tmp_path / "*"], tmp_path / "out", left_out=left_out)
    assert [job.target.name for job in jobs] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert left_out.count() == "1 .txt file"
    assert len(plan_videos([tmp_path / "*.mpg"], tmp_path / "out")) == 1
    with pytest.raises(ValueError, match="matches no video"):
        plan_videos([tmp_path / "e.t?t"], tmp_path / "out")


def test_named_inputs_that_are_not_there(plan, tmp_path):
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    assert "a link to nowhere.jpg, which does not exist" in plan(tmp_path / "link.jpg")
    assert "no.jpg: no such file or folder" in plan(tmp_path / "no.jpg")
    with pytest.raises(ValueError, match=r"/no.jpg, .*/neither.jpg: no such files or folders"):
        plan_images([tmp_path / name for name in ("no.jpg", "neither.jpg")], tmp_path / "out")
    assert "*.jp: matches nothing" in plan(tmp_path / "*.jp")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.txt").touch()
    assert "holds no images, but 1 .txt file" in plan(tmp_path / "folder")


def test_a_folder_that_cannot_be_read(run, tmp_path, monkeypatch):
    """Is named, and the rest goes on."""
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        save_image(tmp_path / "album" / name, make_scene()[0])
    real = os.scandir

    def scandir(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    status, said, err = run(tmp_path / "album", "--recursive", "--output", tmp_path / "out")
    assert status == 2 and "2 of 2 images" in said
    assert f"error: {tmp_path / 'album/b'}: cannot be read (Permission denied)" in err
    status, _, err = run(tmp_path / "album/b", "--output", tmp_path / "out")
    assert status == 2 and err.count("\n") == 1 and "b: cannot be read" in err


def test_results_beside_images_are_told(tmp_path):
    """Of another suffix: the images of a second run may be the masks of the first."""
    for name in ("a.jpg", "a_mask.png", "b.jpg", "b_mask.png", "c_1.jpg"):
        save_image(tmp_path / name, make_scene()[0])
    left_out = LeftOut()
    assert len(plan_images([tmp_path], tmp_path, "_cut", left_out=left_out)) == 5
    named = r"2 images named after others are predicted too, such as \S+a_mask.png beside"
    assert re.match(named, left_out.notes[0])
    plan_images([tmp_path], tmp_path / "out", left_out=(elsewhere := LeftOut()))
    assert not elsewhere.notes
    left_out = LeftOut()
    jobs = plan_images([tmp_path], tmp_path, "_mask", ".png", False, True, left_out)
    assert len(jobs) == 3 and left_out.count() == "2 results of an earlier run"
    assert not left_out.notes


def test_frames_on_standard_input(run, monkeypatch, tmp_path):
    frames = [Image.fromarray(make_scene(seed)[0]) for seed in range(3)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    file.seek(0)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
    status, _, err = run("-", "--output", tmp_path / "a.png")
    assert status == 0 and "standard input: the first of its 3 images is used" in err
    assert re.search(r"; computing on \S+( \(.+\))? in float32\n", err)


def test_names_that_are_not_utf_8(run, tmp_path):
    """Of images, folders and backgrounds."""
    image = save_image(tmp_path / ODD / f"{ODD}.png", make_scene()[0])
    out = tmp_path / f"{ODD} out"
    assert run(tmp_path / ODD, "--output", out)[0] == 0
    assert os.listdir(os.fsencode(out)) == [b"caf\xe9.png"]
    argv = ("--mode", "background", "--background", image, "--output", tmp_path / f"{ODD}.webp")
    assert run(image, *argv)[0] == 0
    image.write_bytes(b"torn")
    status, _, err = run(image, "--output", out)
    assert status == 2 and "caf\\udce9.png: not an image" in err


@pytest.mark.parametrize(
    ("redirections", "inputs", "status", "words"),
    [
        ("<&-", ["-"], 2, "error: standard input is closed"),
        (">&-", ["photo.jpg", "--output", "-"], 2, "error: standard output is closed"),
        ("<&- >&-", ["photo.jpg", "--output", "a.png"], 0, "computing on"),
        ("2>&-", ["photo.jpg", "--output", "a.png"], 0, ""),
        ("2>&-", ["none.jpg"], 2, ""),
        (">/dev/full", ["photo.jpg", "--output", "-"], 2, "error: input or output: No space"),
    ],
)
def test_closed_streams(weights, photo, redirections, inputs, status, words):
    """What is not needed is not missed; what is, is named."""
    command = f'exec "$@" {redirections}'
    argv = [sys.executable, ROOT / "predict.py", *inputs, "--weights", weights, "--img-size", 32]
    done = subprocess.run(
        ["bash", "-c", command, "bash", *map(str, argv)],
        cwd=photo.parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    if status == 0:
        assert open_image(photo.parent / "a.png").size == (48, 40)


def test_results_to_devices_and_pipes(run, photo, tmp_path, monkeypatch):
    """Under any name; they stay what they are."""
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status, _, err = run(photo, "--output", fifo)
        assert status == 0 and "replaced" not in err
        content = os.read(reader, 100_000)
    finally:
        os.close(reader)
    with Image.open(io.BytesIO(content)) as mask:
        assert mask.size == (48, 40) and mask.format == "PNG"
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(photo.read_bytes())))
    assert run("-", "--output", "/dev/null")[0] == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
