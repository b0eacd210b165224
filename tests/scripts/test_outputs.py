"""What the scripts write: never onto what they read, and under names of all kinds."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.data import ROOT, SMALL, make_pairs, make_scene, make_varied_network, save_image

import convert
import export
import predict
import train
import validation
from src import load_model, save_model
from src.files import utf8_path
from train_utils import cli
from train_utils.metrics import plots

ODD = os.fsdecode(b"caf\xe9$")  # a name that is not UTF-8, and would begin a formula
PLAIN = ("--img-size", 32, "--device", "cpu", "--amp", "off", "--workers", 0)


@pytest.fixture
def pairs(tmp_path):
    make_pairs(tmp_path / "set/images", tmp_path / "set/masks", "abc")
    return tmp_path / "set"


@pytest.mark.parametrize("flag", ["--worst-file", "--plot", "--json", "--csv"])
@pytest.mark.parametrize("kind", ["image", "mask", "map", "weights"])
def test_validation_writes_onto_no_input(call, pairs, weights, tmp_path, monkeypatch, flag, kind):
    """By links too; said before anything is computed."""
    make_pairs(tmp_path / "unused", tmp_path / "maps", "abc")
    files = {"image": "set/images/a.jpg", "mask": "set/masks/b.png", "map": "maps/c.png"}
    copy = tmp_path / "copy.pt"
    copy.write_bytes(weights.read_bytes())
    target = tmp_path / files[kind] if kind in files else copy
    direct = flag in ("--worst-file", "--plot") and target.suffix == ".png"
    suffix = {"--json": ".json", "--csv": ".csv"}.get(flag, ".png")
    output = target if direct else tmp_path / f"link{suffix}"
    if not direct:
        output.symlink_to(target)
    monkeypatch.setattr(validation, "score", lambda _: pytest.fail("computed first"))
    before = target.read_bytes()
    source = ("--pred-dir", tmp_path / "maps") if kind == "map" else ("--weights", copy)
    plain = PLAIN[2:] if kind == "map" else PLAIN  # of a network
    argv = ("--data-path", pairs, *source, *plain, flag, output, "--worst", 1)
    status, said, err = call(validation.main, *argv)
    assert (status, said) == (2, "") and f"{flag} {output}: would overwrite an input" in err
    assert target.read_bytes() == before


def test_validation_writes_no_two_results_to_one_file(call, pairs, tmp_path):
    argv = ("--data-path", pairs, "--plot", tmp_path / "a.png", "--worst", 1, "--worst-file")
    status, _, err = call(validation.main, *argv, tmp_path / "a.png")
    assert status == 2 and "two results in one file; name another, as --plot is written" in err


def test_exports_write_onto_no_input(call, weights, tmp_path):
    make_pairs(tmp_path / "images", tmp_path / "masks", "abcdef")
    own = tmp_path / "own.pt2"
    own.write_bytes(weights.read_bytes())
    link = tmp_path / "link.onnx"
    link.symlink_to(tmp_path / "images/a.jpg")
    int8 = ("--weights", own, "--int8", "--calibrate", tmp_path / "images")
    for argv in (("--weights", own, "--output", own), (*int8, "--output", link)):
        status, said, err = call(export.main, *argv)
        assert (status, said) == (2, "") and "--output" in err and "would overwrite" in err
    assert own.read_bytes() == weights.read_bytes()


def test_conversion_writes_onto_no_input(call, weights, tmp_path):
    folder = tmp_path / "network"
    assert call(convert.main, weights, folder)[0] == 0
    same = tmp_path / "same.safetensors"
    os.link(folder / "model.safetensors", same)
    for argv in ((folder, folder), (folder / "model.safetensors", folder), (same, folder)):
        status, said, err = call(convert.main, *argv)
        assert (status, said) == (2, "") and "would overwrite an input" in err
        assert "--output" not in err  # which convert.py has not
    status, _, err = call(convert.main, weights, tmp_path / "file.pt/a.pt")
    (tmp_path / "file").touch()
    status, _, err = call(convert.main, weights, tmp_path / "file/a.pt")
    assert status == 2 and "file/a.pt: cannot be written (Not a directory)" in err


def test_a_run_writes_onto_none_of_its_images(call, pairs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "curves.png").symlink_to(pairs / "masks/a.png")
    argv = ("--data-path", pairs, "--output-dir", run, "--model", "u2net_lite", *PLAIN[2:])
    argv = (*argv, "--img-size", 64, "--crop-size", 64, "--batch-size", 2)
    status, _, err = call(train.main, *argv)
    assert status == 2 and "--output-dir" in err and "would overwrite an input" in err


def test_scores_of_names_that_are_not_utf_8(call, weights, tmp_path):
    """In every file that validation.py writes."""
    make_pairs(tmp_path / ODD / "images", tmp_path / ODD / "masks", [f"{ODD}1", f"{ODD}2$"])
    files = {"--csv": "a.csv", "--json": "a.json", "--plot": "p.png", "--worst-file": "w.png"}
    names = [part for flag, name in files.items() for part in (flag, tmp_path / ODD / name)]
    argv = ("--data-path", tmp_path / ODD, "--weights", weights, *PLAIN, "--worst", 2)
    status, _, err = call(validation.main, *argv, *names)
    assert status == 0 and "computing on cpu in float32" in err
    assert json.loads((tmp_path / ODD / "a.json").read_text())["data"] == ODD
    with (tmp_path / ODD / "a.csv").open(encoding="utf-8", newline="") as file:
        assert [row["image"] for row in csv.DictReader(file)] == ["caf\\udce9$1", "caf\\udce9$2$"]
    assert all((tmp_path / ODD / name).stat().st_size for name in files.values())
    assert plots._text(ODD) == "caf\\udce9\\$"


def test_weights_in_names_that_are_not_utf_8(call, tmp_path):
    """Written and read in every format."""
    folder, weights = tmp_path / ODD, tmp_path / "small.pt"
    save_model(make_varied_network(SMALL), weights)
    onnx, safetensors = folder / f"{ODD}.onnx", folder / f"{ODD}.safetensors"
    assert call(export.main, "--weights", weights, "--output", onnx)[0] == 0
    assert call(convert.main, onnx, safetensors)[0] == 0
    assert call(convert.main, safetensors, folder / "network")[0] == 0
    expected = load_model(onnx).state_dict()
    for path in (safetensors, folder / "network"):
        found = load_model(path).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in found), path
    with utf8_path(onnx) as readable:
        assert str(readable).isascii() and readable.read_bytes() == onnx.read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [onnx.name, safetensors.name, "network"]
    )


def test_output_that_cannot_be_flushed_is_told(monkeypatch, capsys):
    """Python itself would end with a traceback, and 120."""

    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sys.stdout", Full())
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    with pytest.raises(SystemExit) as left:
        cli.run(lambda: 0)
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: standard output: No space left on device\n"


def test_another_pipe_that_breaks_is_told(capsys):
    """Only the reader of standard output may go without a word."""

    def main():
        raise BrokenPipeError(32, "Broken pipe", "loader")

    with pytest.raises(SystemExit) as left:
        cli.run(main)
    assert left.value.code == 2
    assert capsys.readouterr().err == "error: loader: Broken pipe\n"


def test_a_result_of_an_earlier_run_is_replaced(call, weights, tmp_path, monkeypatch):
    """In the folder where one is: no flag that was left out stands for that folder."""
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "photo.png", make_scene()[0])
    flags = ["--weights", weights, "--device", "cpu", "--img-size", 32, "--boxes", "boxes.csv"]
    for _ in range(2):
        status, _, err = call(predict.main, "photo.png", "--output", "mask.png", *flags)
        assert status == 0, err


@pytest.mark.parametrize("name", ["loop", "loop/x.png"])
def test_a_loop_of_links_is_no_place(call, weights, tmp_path, monkeypatch, name):
    """Python before 3.13 raises a RuntimeError where it resolves one."""
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "photo.png", make_scene()[0])
    (tmp_path / "loop").symlink_to("loop")
    status, _, err = call(predict.main, "photo.png", "--output", name, "--weights", weights)
    assert status == 2 and "loop" in err and "Too many levels of symbolic links" in err
    for names in (("loop", "k.pt"), ("photo.png", "loop.pt")):
        (tmp_path / "loop.pt").unlink(missing_ok=True)
        (tmp_path / "loop.pt").symlink_to("loop.pt")
        status, _, err = call(convert.main, *names)
        assert status == 2 and err.count("\n") == 1, err
    for main in (train.main, validation.main):
        status, _, err = call(main, "--image-dir", "loop", "--mask-dir", "loop")
        assert status == 2 and "loop: no such folder" in err, err


def test_what_falls_apart_after_an_error_is_not_reported():
    """As the loader of a run whose workers were killed, when its turn comes to be deleted."""
    program = """
from src import UserError
from train_utils import cli

class Loader:
    def __del__(self):
        raise ConnectionResetError

def main():
    loader = Loader()
    raise UserError("the workers are gone")

cli.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: the workers are gone\n")
