"""predict.py as it is called: which files it reads and writes, and what it makes of them."""

import io
import subprocess
import sys

import numpy as np
import pytest
from helpers.data import ROOT, break_network, make_scene, save_image, truncate_file
from helpers.processes import PATIENCE, ranks, wait_for
from PIL import Image

import predict
from src import Predictor, UserError, build_model, save_model
from src.pictures.images import open_image, read_image
from src.pictures.plan import plan_images
from train_utils.distributed import launched_rank


@pytest.fixture
def album(tmp_path):
    """a.jpg, b.PNG, deep/a.jpg, deep/er/c.png."""
    root = tmp_path / "album"
    for seed, name in enumerate(("a.jpg", "b.PNG", "deep/a.jpg", "deep/er/c.png")):
        save_image(root / name, make_scene(seed)[0])
    return root


@pytest.fixture
def run(weights, call):
    """``run(*argv)`` → exit status, stdout, stderr; on small inputs, in float32."""
    return lambda *argv: call(
        predict.main, *argv, "--weights", weights, "--img-size", 64, "--amp", "off"
    )


def inside(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_masks_are_the_predictors(run, album, weights, tmp_path):
    status, said, _ = run(album, "--output", tmp_path / "out")
    assert status == 0 and "2 of 2" in said and inside(tmp_path / "out") == ["a.png", "b.png"]
    predictor = Predictor(weights, 64, amp="off")
    for name in ("a.jpg", "b.PNG"):
        mask = open_image(tmp_path / f"out/{name[0]}.png")
        assert np.array_equal(mask, predictor(open_image(album / name)))


def test_tree(run, album):
    """Results in a folder within are no pictures of the next run."""
    for _ in range(2):
        status, said, _ = run(album, "--recursive", "--output", album / "out", "--format", "webp")
        assert status == 0 and "4 of 4" in said
    assert inside(album / "out") == ["a.webp", "b.webp", "deep/a.webp", "deep/er/c.webp"]


def test_suffix_beside_the_pictures(run, album):
    mine = save_image(album / "a_mask.png", make_scene(9)[0]).read_bytes()
    status, _, err = run(album, "--output", album, "--suffix", "_mask")
    assert status == 2 and "a_mask.png would overwrite an image" in err
    for _ in range(2):  # the second time, all results lie among the pictures
        assert run(album, "--output", album, "--suffix", "_mask", "--skip-existing")[0] == 0
    assert (album / "a_mask.png").read_bytes() == mine
    assert run(album, "--output", album)[0] == 2  # results would be pictures the next time
    assert [name for name in inside(album) if "/" not in name] == [
        "a.jpg", "a_mask.png", "b.PNG", "b_mask.png",
    ]  # fmt: skip
    assert run(album / "b.PNG", "--output", album / "b.PNG")[0] == 2


def test_sizes_and_places(run, album, tmp_path):
    """A strip keeps a pixel of width, a binary mask has two values, and flags that would have no
    effect are refused."""
    strip = save_image(tmp_path / "strip.png", make_scene(0)[0].repeat(80, 0)[:, :4])
    assert run(strip, "--size", 100, "--output", tmp_path / "s.png")[0] == 0
    assert open_image(tmp_path / "s.png").size == (1, 100)
    small = tmp_path / "b.png"
    assert run(album / "a.jpg", "--mode", "binary", "--size", 17, "--output", small)[0] == 0
    assert set(np.unique(np.asarray(open_image(small)))) <= {0, 255}
    assert run(album / "a.jpg", "--background", "blur", "--output", small)[0] == 2


def test_patterns(run, album, tmp_path):
    """Folders that a pattern leads through are kept, once for each picture, round a loop too; a
    suffix matches in either case."""
    (album / "deep/loop").symlink_to("..")
    status, *_ = run(f"{album}/**/?.[jp]*g", "--output", tmp_path / "all")
    assert status == 0
    assert inside(tmp_path / "all") == ["a.png", "b.png", "deep/a.png", "deep/er/c.png"]
    status, *_ = run(f"{album}/deep/er/*", "--output", tmp_path / "out")
    assert status == 0 and inside(tmp_path / "out") == ["c.png"]


def test_skip_existing(run, album, tmp_path):
    """Goes on where it ended, and leaves what is there as it is."""
    out = tmp_path / "out"
    truncate_file(album / "b.PNG")
    assert run(album, "--output", out)[0] == 2
    written = (out / "a.png").stat().st_mtime_ns
    save_image(album / "b.PNG", make_scene()[0])
    status, said, _ = run(album, "--output", out, "--skip-existing")
    assert status == 0 and "1 of 2" in said and "1 already existed" in said
    assert (out / "a.png").stat().st_mtime_ns == written and (out / "b.png").exists()


def test_pipes(weights, album):
    """Bytes in, bytes out, and nothing else on standard output."""
    command = [sys.executable, ROOT / "predict.py", "-", "--weights", weights, "--img-size", "64"]
    content = (album / "a.jpg").read_bytes()
    done = subprocess.run([*command, "--mode", "cutout"], input=content, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert (image := Image.open(io.BytesIO(done.stdout))).mode == "RGBA" and image.size == (48, 40)


def test_a_pipe_that_brings_no_picture(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"no picture")))
    status, said, err = run("-")
    assert (status, said) == (2, "")
    assert err.endswith("error: standard input: not an image in a known format\n")


def test_standard_output_takes_one_picture(run, album):
    status, said, err = run(album, "--output", "-")
    assert (status, said) == (2, "") and "one image, not for 2" in err


def test_one_file_in_another_format(run, album, tmp_path):
    assert run(album / "a.jpg", "--output", tmp_path / "a.tif")[0] == 0
    assert open_image(tmp_path / "a.tif").format == "TIFF"


def test_limit(run, tmp_path):
    save_image(tmp_path / "large.png", Image.new("L", (1001, 1000)))
    status, _, err = run(tmp_path / "large.png", "--max-megapixels", 1, "--output", tmp_path / "o")
    assert status == 2 and "large.png: refused, as it has more than 1 million pixels; " in err
    assert "--max-megapixels N allows more" in err


def test_frames_are_said(run, tmp_path):
    frames = [Image.fromarray(make_scene(seed)[0]) for seed in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    _, _, err = run(tmp_path / "a.gif", "--output", tmp_path / "o")
    assert "a.gif: the first of its 3 images is used" in err
    image = save_image(tmp_path / "b.png", make_scene()[0])
    behind = ("--mode", "background", "--background", tmp_path / "a.gif")
    _, _, err = run(image, *behind, "--output", tmp_path / "o.png")
    assert "a.gif: the first of its 3 images is used" in err


def test_background_picture_and_its_errors(run, album, tmp_path):
    blue = save_image(tmp_path / "blue.png", Image.new("RGB", (9, 9), (0, 0, 200)))
    argv = (album / "a.jpg", "--mode", "background", "--output", tmp_path / "o.png", "--threshold")
    assert run(*argv, 1, "--background", blue)[0] == 0  # no pixel is that sure: all background
    assert (np.array(open_image(tmp_path / "o.png")) == (0, 0, 200)).all()
    assert run(*argv, 1, "--background", truncate_file(blue, 0.5))[0] == 2


def test_plan_tells_names_apart(tmp_path):
    for name in ("one/a.jpg", "one/a.png", "two/a.jpg"):
        save_image(tmp_path / name, make_scene()[0])
    names = [job.target.name for job in plan_images([tmp_path / "one"], tmp_path / "out")]
    assert names == ["a.jpg.png", "a.png.png"]
    with pytest.raises(UserError, match=r"one/a\.jpg and .*two/a\.jpg have the same name"):
        plan_images([tmp_path / "one/a.jpg", tmp_path / "two/a.jpg"], tmp_path / "out")
    twice = [tmp_path / "one/a.jpg", tmp_path / "two/../one/a.jpg"]
    assert len(plan_images(twice, tmp_path / "out")) == 1
    save_image(tmp_path / "one/a.jpg.png", make_scene()[0])
    names = [job.target.name for job in plan_images([tmp_path / "one"], tmp_path / "out")]
    assert names == ["a.jpg.png", "a.jpg.png.png", "a.png.png"]
    with pytest.raises(UserError, match="recursive searches its folders"):
        plan_images([tmp_path], tmp_path / "out")


def test_a_signal_leaves_no_temporary_file(weights, tmp_path):
    """As batch systems and service managers send it."""
    for seed in range(200):
        save_image(tmp_path / f"many/{seed}.png", make_scene(seed, 300, 200)[0])
    argv = ["predict.py", tmp_path / "many", "--weights", weights, "--img-size", 64]
    process = subprocess.Popen(
        [sys.executable, *map(str, argv), "--output", str(tmp_path / "out")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(tmp_path / "out/0.png")
        process.terminate()
        assert process.wait(PATIENCE) == 143
    finally:
        process.kill()
    written = inside(tmp_path / "out")
    assert 0 < len(written) < 200 and all(name.endswith(".png") for name in written)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-", "--output", "x.gif"], "choose one of"),
        (["-", "--skip-existing"], "go with folders"),
        (["a.jpg", "--format", "webp", "--output", "x.png"], "contradicts --output x.png"),
    ],
)
def test_flags_that_do_not_agree(run, argv, words):
    """Said before any work."""
    status, _, err = run(*argv)
    assert status == 2 and words in err


def test_a_network_whose_maps_are_not_finite(call, album, tmp_path):
    """Each image is named, and no mask is written."""
    network = break_network(build_model("u2net_lite"))
    save_model(network, tmp_path / "broken.pt")
    argv = ("--weights", tmp_path / "broken.pt", "--img-size", 64, "--amp", "off", "--output")
    status, said, err = call(predict.main, album, *argv, tmp_path / "out")
    assert status == 2 and "0 of 2" in said and not (tmp_path / "out").exists()
    for name in ("a.jpg", "b.PNG"):
        assert f"{album / name}: the network gives values that are not finite" in err
    status, said, err = call(predict.main, album / "a.jpg", *argv, "-")
    assert (status, said) == (2, "") and "a.jpg: the network gives values" in err


def test_flags_of_videos(run, album):
    status, _, err = run(album, "--frames")
    assert status == 2 and "--frames goes with videos" in err


def predict_late(argv, written):
    """The second rank would list the pictures once the first one has written."""
    if launched_rank():
        predict.plan_images = lambda *args: wait_for(written) or plan_images(*args)
    return predict.main(argv)


def predict_piped(argv, content):
    """With an image on the first rank's standard input; gives what is on standard output."""
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"" if launched_rank() else content))
    sys.stdout = io.TextIOWrapper(io.BytesIO())
    assert predict.main(argv) == 0
    sys.stdout.flush()
    return sys.stdout.buffer.getvalue()


def test_one_rank_has_the_pipes(album, weights):
    argv = ["--weights", str(weights), "--img-size", "32", "--device", "cpu", "--output", "-"]
    content = (album / "a.jpg").read_bytes()
    for inputs in ("-", str(album / "a.jpg")):
        told = ranks(2, predict_piped, [inputs, *argv], content, group=False)
        assert [status for _, status, _ in told] == [0, 0], told
        assert read_image(io.BytesIO(told[0][0])).size == (48, 40) and told[1][0] == b""


def test_ranks_share_one_list(album, weights):
    """Or one would find another's results among the pictures."""
    argv = [str(album), "--output", str(album), "--suffix", "_mask", "--weights", str(weights)]
    argv += ["--img-size", "32", "--device", "cpu"]
    told = ranks(2, predict_late, argv, album / "a_mask.png", group=False)
    assert [status for _, status, _ in told] == [0, 0], told
    names = [name for name in inside(album) if "mask" in name]
    assert names == ["a_mask.png", "b_mask.png"]
    told = ranks(2, predict.main, argv, group=False)
    assert told[0][1] == 2 and "a_mask.png would overwrite" in told[0][2]
    assert told[1][1] == 1 and "another process has ended" in told[1][2]
