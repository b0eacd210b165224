"""The command lines as users type them: what they must fix gives status 2 and one clear message."""

import argparse
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.data import ROOT, make_duts, make_pairs, make_scene, save_image, truncate_file
from helpers.processes import PATIENCE
from PIL import Image

import predict
import train
import validation
from src import build_model
from src.pictures.images import open_image

SCRIPTS = {"train": train, "validation": validation, "predict": predict}
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
BASE = {
    "train": "--data-path {duts} --model u2net_lite --img-size 64 --crop-size 48 --epochs 1 "
    "--batch-size 2 --workers 0 --amp off --output-dir {out}",
    "validation": "--data-path {duts} --weights {weights} --img-size 64 --workers 0 --amp off",
    "predict": "--weights {weights} --img-size 64 --amp off --output {out} {photo}",
}


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory, weights):
    """Files that are no usable weights, each wrong in its own way."""
    root = tmp_path_factory.mktemp("wrong")
    good = torch.load(weights, weights_only=True)
    state, config = good["model"], good["config"]
    some = next(iter(state))
    stage1 = "stage1.rebnconvin.conv_s1.weight"
    contents = {
        "foreign": {"conv1.weight": torch.zeros(2)},
        "no-dict": [1, 2],
        "nothing": {},
        "other-shape": {"model": {**state, some: torch.zeros(2)}, "config": config},
        "partial": {"model": {some: state[some]}, "config": config},
        "no-tensors": {"model": dict.fromkeys(state, 1), "config": config},
        "bad-ema": {"model": state, "config": config, "ema": 3},
        "bad-table": {"model": state, "config": {**config, "depth": 3}},
        "half-official": {stage1: torch.zeros(16, 3, 3, 3)},
        "evil-zip": {"model": Evil(root / "EVIL")},
    }
    for name, content in contents.items():
        torch.save(content, root / f"{name}.pt")
    (root / "evil.pt").write_bytes(pickle.dumps(Evil(root / "EVIL")))
    (root / "empty.pt").write_bytes(b"")
    (root / "page.pt").write_text("<!DOCTYPE html><html>404</html>")
    tear_copy = weights.read_bytes()
    (root / "torn.pt").write_bytes(tear_copy[: len(tear_copy) // 2])
    (root / "torn.safetensors").write_bytes(tear_copy[:500])
    return root


@pytest.fixture
def files(tmp_path, weights, weight_files):
    """What the command lines below name in braces."""
    picture, _ = make_scene()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-folder.png").mkdir()
    (tmp_path / "text").write_text("a file, not a folder\n")
    (tmp_path / "bad.json").write_text("{not json")
    table = build_model("u2net_lite").config.to_dict()
    table["encoder"][1]["in_ch"] = 65
    (tmp_path / "chain.json").write_text(json.dumps(table))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(b"")
    faulty = make_duts(tmp_path / "faulty")
    (faulty / "DUTS-TR/DUTS-TR-Mask/tr1.png").unlink()
    (faulty / "DUTS-TE/DUTS-TE-Image/te2.jpg").write_bytes(b"x")
    return {
        "tmp": tmp_path,
        "duts": make_duts(tmp_path / "duts"),
        "weights": shutil.copy(weights, tmp_path / "lite.pt"),
        "wrong": weight_files,
        "photo": save_image(tmp_path / "photo.png", picture),
        "twin": save_image(tmp_path / "twin" / "photo.png", picture),
        "second": save_image(tmp_path / "second.jpg", picture),
        "out": tmp_path / "out",
    }


def arguments(script, files, more=""):
    return shlex.split(f"{BASE[script]} {more}".format(**files))


def shell(script, *argv, **environment):
    """The script in a process of its own, from the repository's root."""
    return subprocess.run(
        [sys.executable, f"{script}.py", *map(str, argv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_explains_every_flag(script, call, monkeypatch):
    """And says no default twice, nor that it is None or empty."""
    parsers = []
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(
        argparse.ArgumentParser, "parse_args", lambda p, a: parsers.append(p) or parse(p, a)
    )
    status, out, _ = call(SCRIPTS[script].main, "--help")
    squeezed = "".join(out.split())  # lines are broken anywhere
    assert status == 0 and f"python {script}.py" in out
    for action in parsers[0]._actions:
        assert action.help, action.dest
        assert "".join(action.help.replace("%%", "%").split()) in squeezed
    texts = [action.help for action in parsers[0]._actions]
    assert len(set(texts)) == len(texts), "a flag has another's help"
    assert not any(f"(default:{empty})" in squeezed for empty in ("None", ""))
    assert squeezed.count(")(default") == 0


FLAGS = [
    ("train", "--epochs 0", "--epochs"),
    ("train", "--batch-size -2", "--batch-size"),
    ("train", "--lr fast", "--lr"),
    ("train", "--lr -1", "--lr"),
    ("train", "--lr nan", "--lr"),
    ("train", "--weight-decay -1", "--weight-decay"),
    ("train", "--clip-grad -1", "--clip-grad"),
    ("train", "--ema 1.5", "--ema"),
    ("train", "--seed 99999999999999999999", "--seed"),
    ("train", "--loss-weights 1 1", "--loss-weights"),
    ("train", "--loss-weights 0 0 0 0 0 0 0", "all are 0"),
    ("train", "--config a.toml --config b.toml", "given twice"),
    ("train", "--model=", "--model: the value is empty"),
    ("train", "--amp int8", "--amp"),
    ("train", "--amp fp16 --device cpu", "--amp fp16"),
    ("train", "--crop-size 96", "--crop-size 96"),
    ("train", "--batch-size 1 --img-size 32 --crop-size 32", "--batch-size"),
    ("train", "--device gpu0", "--device gpu0"),
    ("train", "--device meta", "--device meta"),
    ("train", "--model resnet", "resnet"),
    ("train", "--model {tmp}/absent.json", "absent.json"),
    ("train", "--model {tmp}/bad.json", "bad.json"),
    ("train", "--model {tmp}/chain.json", "stage En2"),
    ("train", "--unknown 3", "--unknown"),
    ("train", "--img_size 64", "did you mean --img-size?"),
    ("predict", "--img-size 9000", "from 32 to 8192"),
    ("validation", "--split dev", "--split"),
    ("validation", "--metrics none", "--metrics"),
    ("validation", "--img-size 0", "--img-size"),
    ("validation", "--workers -1", "--workers"),
    ("predict", "--mode magic", "--mode"),
    ("predict", "--img-size big", "--img-size"),
    *(pytest.param(s, "--device cuda", "--device cuda", marks=NO_CUDA) for s in SCRIPTS),
]
PATHS = [
    *((s, "--data-path {tmp}/absent", "absent") for s in ("train", "validation")),
    *((s, "--data-path {tmp}/empty", "DUTS-TR") for s in ("train", "validation")),
    *((s, "--data-path {tmp}/text", "text") for s in ("train", "validation")),
    *((s, "--image-dir {tmp}", "--mask-dir") for s in ("train", "validation")),
    ("train", "--data-path {tmp}/faulty", "tr1"),
    ("train", "--data-path {tmp}/faulty", "te2.jpg"),  # both splits in one report
    ("validation", "--data-path {tmp}/faulty", "te2.jpg"),
    ("train", "--output-dir {tmp}/text/run", "text"),
    ("train", "--output-dir {tmp}/text", "text"),
    ("train", "--output-dir {tmp}/run", "--resume"),
    ("train", "--resume {weights} --output-dir {tmp}", "--pretrained"),
    ("train", "--resume {weights}", "--output-dir"),
    ("train", "--resume {tmp}/absent.pt --output-dir {tmp}", "absent.pt"),
    ("train", "--resume auto --output-dir {tmp}/run", "last.pt"),
    ("validation", "--json {tmp}/text/scores.json", "scores.json"),
    ("validation", "--json {tmp}/empty", "empty"),
    ("validation", "--json {weights}", "--json"),
    ("validation", "--json {duts}/DUTS-TE/DUTS-TE-Mask/te0.png", "--json"),
    ("predict", "{tmp}/absent.jpg", "absent.jpg"),
    ("predict", "{tmp}/empty", "empty"),
    ("predict", "--output {photo}", "photo.png"),
    ("predict", "--output {tmp}", "photo.png"),
    ("predict", "{second} --output {tmp}/one.png", "one.png"),
    ("predict", "{twin}", "photo"),
    ("predict", "--mode cutout --output {tmp}/mask.jpg", "mask.jpg: a JPEG has no transparency"),
    ("predict", "--output {weights}", "--output"),
    ("predict", "--output {tmp}/text", "text"),
    ("predict", "--output {tmp}/mask.gif", "mask.gif"),
    ("predict", "--background no-colour", "--background"),
    ("predict", "--threshold 1.5", "--threshold"),
    ("predict", "--suffix a/b", "--suffix"),
    ("predict", "-", "leave out the other inputs"),
    ("predict", "{tmp}/*.nothing", "*.nothing"),
    ("predict", "--output {tmp}/a-folder.png", "a-folder.png"),
]


@pytest.mark.parametrize(("script", "wrong", "named"), FLAGS + PATHS)
def test_what_the_user_must_fix(script, wrong, named, files, call):
    """Status 2, the culprit's name, no run begun and no input touched."""
    inputs = [files["weights"], files["photo"], *sorted(files["duts"].rglob("*.png"))]
    before = [path.read_bytes() for path in inputs]
    status, _, err = call(SCRIPTS[script].main, *arguments(script, files, wrong))
    assert status == 2 and named in err, err
    assert "Traceback" not in err
    assert [path.read_bytes() for path in inputs] == before
    assert not files["out"].exists()
    assert not list(files["tmp"].rglob("*.tmp"))


WEIGHTS = [
    *("torn.pt", "torn.safetensors", "empty.pt", "page.pt", "evil.pt", "evil-zip.pt"),
    *("foreign.pt", "no-dict.pt", "nothing.pt", "other-shape.pt", "partial.pt", "no-tensors.pt"),
    *("bad-ema.pt", "bad-table.pt", "half-official.pt", "absent.pt"),
]


@pytest.mark.parametrize(
    ("script", "argv", "named"),
    [
        ("predict", ["a.png", "--output", ""], "--output"),
        ("predict", [""], "input"),
        ("train", ["--data-path", "a", "", "--epochs", "1"], "--data-path"),
        ("train", ["--amp", "off", "", "--epochs", "1"], "an argument"),
        ("predict", ["--refine", ""], "input"),
        ("predict", ["--mode", "cutout", ""], "input"),
        ("predict", ["--suffix", "", ""], "input"),
        ("train", ["--pretrained", ""], "--pretrained"),
        ("validation", ["--weights", ""], "--weights"),
    ],
)
def test_values_of_variables_that_are_not_set(script, argv, named, call):
    """An empty path would be the current folder."""
    status, _, err = call(SCRIPTS[script].main, *argv)
    assert status == 2 and err.startswith(f"error: {named}: the value is empty")


@pytest.mark.parametrize("name", WEIGHTS)
def test_unusable_weights_are_named(name, files, call):
    """By every script; none of them runs what a file holds."""
    path = files["wrong"] / name
    cases = {"train": "--pretrained", "validation": "--weights", "predict": "--weights"}
    for script, flag in cases.items() if "evil" in name or name == "torn.pt" else [("predict", 0)]:
        argv = arguments(script, files, f"{flag or '--weights'} {path}")
        status, _, err = call(SCRIPTS[script].main, *argv)
        assert status == 2 and str(path) in err and "Traceback" not in err, (script, err)
        if "evil" not in name:  # a page saved in place of weights is not an attack
            assert "run code" not in err
    assert not (files["wrong"] / "EVIL").exists()


def test_no_data_at_all(call, weights):
    for main, argv in ((train.main, []), (validation.main, ["--weights", weights])):
        status, _, err = call(main, *argv)
        assert status == 2 and "--data-path" in err


def test_one_run_then_its_weights(files, call, monkeypatch):
    """The four commands of a first day; then resuming what is finished, and what has no best."""
    out = files["out"]
    status, said, err = call(train.main, *arguments("train", files))
    assert status == 0 and str(out / "best.pt") in said, err
    for name in ("args.json", "log.csv", "last.pt", "best.pt", "curves.png"):
        assert (out / name).stat().st_size, name
    assert list((out / "samples").glob("*.png"))
    more = f"--weights {out}/best.pt"
    status, said, _ = call(
        validation.main, *arguments("validation", files, f"{more} --json {out}/scores.json")
    )
    scores = json.loads((out / "scores.json").read_text())
    assert status == 0 and scores["images"] == 3 and f"{scores['mae']:.3f}" in said
    assert 0 < scores["max_f_per_image"] <= 1 and 0 < scores["max_f"] <= 1
    status, _, _ = call(predict.main, *arguments("predict", files, f"{more} --mode cutout"))
    with Image.open(out / "photo.png") as cutout:
        cutout.load()
    assert status == 0 and (cutout.mode, cutout.size) == ("RGBA", (48, 40))
    assert call(train.main, *arguments("train", files, "--resume auto"))[0] == 0
    state = torch.load(out / "last.pt", weights_only=True)
    torch.save({**state, "best": {}}, out / "last.pt")  # as stopped before its first evaluation
    status, _, err = call(train.main, *arguments("train", files, "--resume auto"))
    assert status == 0, err


def test_invalid_mask_in_mid_run(tmp_path, files, call):
    """Found by a loader's worker: the message comes without that worker's traceback."""
    make_pairs(tmp_path / "images", tmp_path / "masks", [f"m{i:02d}" for i in range(40)])
    (tmp_path / "test.txt").write_text("m00\n")
    for i in range(2, 40, 2):  # not among the few masks that are read at the start
        save_image(tmp_path / "masks" / f"m{i:02d}.png", np.full((40, 48), 38, np.uint8))
    status, _, err = call(
        train.main, *arguments("train", files, f"--data-path {tmp_path} --workers 1")
    )
    assert status == 2 and "Traceback" not in err and "/masks/m" in err
    assert err.count("error:") == 1 and "worker process" not in err


def test_torn_picture_in_mid_run(tmp_path, files):
    root = make_duts(tmp_path / "set", train=1)
    torn = truncate_file(root / "DUTS-TE" / "DUTS-TE-Image" / "te1.jpg")
    done = shell(
        "validation",
        *arguments("validation", files, f"--data-path {root} --workers 1 --json {{out}}.json"),
    )
    assert done.returncode == 2 and str(torn) in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1


def test_predict_goes_on_past_a_bad_file(tmp_path, files):
    """It is named, the others are written, and the status tells."""
    folder = tmp_path / "holiday"
    for name in ("a.jpg", "c.PNG", "torn.jpg"):
        save_image(folder / name, make_scene(width=60)[0])
    truncate_file(folder / "torn.jpg", 0.5)
    (folder / "page.jpg").write_text("<html>")
    (folder / "readme.txt").write_text("no picture")
    argv = arguments("predict", files, str(folder))
    done = shell("predict", *argv)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "torn.jpg" in done.stderr and "page.jpg" in done.stderr
    written = {path.name: open_image(path) for path in files["out"].iterdir()}
    assert set(written) == {"photo.png", "a.png", "c.png"} and "3 of 5" in done.stdout
    assert all(image.mode == "L" for image in written.values())
    assert written["a.png"].size == (60, 40)


def test_train_from_a_shell(files):
    done = shell("train", *arguments("train", files, "--data-path {tmp}/faulty"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "tr1" in done.stderr and "--skip-invalid" in done.stderr and not files["out"].exists()


def test_a_console_without_unicode():
    done = shell("validation", "--help", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and "usage" in done.stdout, done.stderr
