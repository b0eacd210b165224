"""Runs that meet what they cannot read, and runs that meet each other."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.data import ROOT, SMALL_TABLE, make_pairs, same_state, truncate_file
from helpers.runs import FLAGS, rows, run

import train
import validation
from my_dataset import SegmentationDataset
from src import UserError
from train_utils.config import DECLARATIONS
from train_utils.data.loaders import EpochSampler, train_loader
from train_utils.data.splits import find_pairs
from train_utils.training.build.folder import claim_folder
from train_utils.training.records import was_started_by, write_args
from transforms import TrainPreset

SHORT = ["--epochs", "2", "--ema", "0"]


@pytest.fixture
def torn(tmp_path):
    """A set of 20 with a sound header but torn pixels: an image, a mask, and an image to test."""
    root = tmp_path / "torn"
    make_pairs(root / "images", root / "masks", [f"{i:02d}" for i in range(20)])
    (root / "test.txt").write_text("17\n18\n19\n")
    truncate_file(root / "images/03.jpg")
    truncate_file(root / "masks/05.png", 0.6)
    truncate_file(root / "images/18.jpg")
    return root


def last(folder):
    return torch.load(folder / "last.pt", weights_only=True)


def test_torn_files_are_passed_over(torn, tmp_path, capsys):
    """Named once each, and replaced by the same ones with any workers and after a resume."""
    assert run(torn, tmp_path / "whole", *SHORT) == 0
    said = capsys.readouterr()
    text = said.out + said.err
    assert text.count("03.jpg: cannot be read") == text.count("05.png: cannot be read") == 1
    assert text.count("18.jpg: cannot be read") == 1 and "left out of the scores" in text
    assert text.count("another image takes its place") == 2 and len(rows(tmp_path / "whole")) == 2
    assert run(torn, tmp_path / "workers", *SHORT, "--workers", "2") == 0
    assert same_state(last(tmp_path / "whole")["model"], last(tmp_path / "workers")["model"])


def test_a_resume_goes_on(torn, tmp_path):
    """Of a run during which files were torn: with the result of one that was not interrupted."""
    assert run(torn, tmp_path / "whole", *SHORT) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part/last.pt").unlink()  # back to the one after the first epoch
    assert run(torn, tmp_path / "part", *SHORT, "--resume", "auto") == 0
    assert same_state(last(tmp_path / "whole")["model"], last(tmp_path / "part")["model"])


def test_too_many_end_the_run(torn, tmp_path):
    for i in range(12):
        if i != 3:
            truncate_file(torn / f"images/{i:02d}.jpg")
    with pytest.raises(UserError, match=r"of 17 images cannot be read: .*fix these files and"):
        run(torn, tmp_path / "run", *SHORT)


def test_replacements_depend_on_the_key_alone(torn):
    pairs = find_pairs(torn, "train").pairs
    data = SegmentationDataset(pairs, TrainPreset(40, 32), 3)
    orders = []
    for workers in (0, 2):
        loader = train_loader(data, EpochSampler([17], 17, 3), workers, tolerant=True)
        orders.append(next(iter(loader))[2].tolist())
        assert sorted(pairs[i].name for i in loader.errors) == ["03", "05"]
    assert orders[0] == orders[1] and len(orders[0]) == 17
    assert not {3, 5} & {int(pairs[i].name) for i in orders[0]}


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
def test_names_that_are_not_utf8(tmp_path, call):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xe4t"))
    make_pairs(root / "images", root / "masks", [f"\udce4{i}" for i in range(8)])
    assert run(root, tmp_path / "run", *SHORT) == 0
    assert run(root, tmp_path / "run", *SHORT, "--resume", "auto") == 0
    argv = ["--weights", tmp_path / "run/best.pt", "--data-path", root, "--workers", 0]
    argv += ["--csv", tmp_path / "s.csv", "--json", tmp_path / "s.json", "--worst", 1]
    status, _, err = call(validation.main, *argv, "--worst-file", tmp_path / "w.png")
    assert status == 0 and len((tmp_path / "s.csv").read_text().splitlines()) == 9, err


def test_balanced_weights_without_a_torn_mask(torn, tmp_path):
    assert run(torn, tmp_path / "run", *SHORT, "--class-weights", "balanced") == 0


START = f"""
import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import time, train
from train_utils.training import trainer
step = trainer.Trainer.step
def slow(self, batches):
    print("step", flush=True); time.sleep(120); return step(self, batches)
trainer.Trainer.step = slow
train.cli.run(train.main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of files there")
def test_two_runs_in_one_folder(data, tmp_path, call):
    """The second is refused, with --resume auto too; killed, the first leaves the way free."""
    argv = ["--data-path", str(data), "--output-dir", str(tmp_path / "run"), *FLAGS, *SHORT]
    first = subprocess.Popen(
        [sys.executable, "-c", START, *argv], stdout=subprocess.PIPE, text=True
    )
    try:
        assert any("step" in line for line in first.stdout)
        before = (tmp_path / "run/args.json").read_bytes()
        for more in ([], ["--resume", "auto"]):
            status, _, err = call(train.main, *argv, *more)
            assert status == 2 and "another run is writing to it" in err and "--output-dir" in err
        assert (tmp_path / "run/args.json").read_bytes() == before
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    status, said, err = call(train.main, *argv)
    assert status == 0 and "has no checkpoint: starting from scratch" in said, err
    assert len(rows(tmp_path / "run")) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no locks of files there")
def test_a_lock_that_is_removed_while_it_is_taken(tmp_path, monkeypatch):
    """By a run that ends: a lock without a name would keep nobody away."""
    import fcntl

    original, removed = fcntl.lockf, []

    def lockf(file, *args):
        original(file, *args)
        if not removed:
            removed.append(Path(file.name).unlink())

    monkeypatch.setattr(fcntl, "lockf", lockf)
    claim_folder(tmp_path / "run")
    assert removed and (tmp_path / "run/.lock").is_file()


@pytest.mark.parametrize("name", ["best.pt", "model.safetensors"])
def test_other_weights_in_the_folder(data, tmp_path, name):
    """Nothing is written over, and the folder's name does not go on to stand for others."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_bytes(b"weights")
    with pytest.raises(UserError, match=f"already contains a {re.escape(name)}"):
        run(data, tmp_path / "run")
    assert (tmp_path / "run" / name).read_bytes() == b"weights"


def test_a_folder_to_resume_from(data, tmp_path):
    with pytest.raises(UserError, match=r"is a folder; pass the last\.pt in it"):
        run(data, tmp_path / "run", "--resume", str(tmp_path))


def test_args_of_the_beginning_stay(tmp_path):
    """A resume adds what has changed since; it belongs to its launch as well."""
    path = tmp_path / "args.json"
    write_args(tmp_path, {"workers": 1, "keep": 2}, "a")
    first = json.loads(path.read_text())
    write_args(tmp_path, {"workers": 3, "keep": 2}, "b", resumed="1 epoch and 2 batches")
    write_args(tmp_path, {"workers": 1, "keep": 2}, "c", resumed="2 epochs and 0 batches")
    found = json.loads(path.read_text())
    resumed = found.pop("resumed")
    assert found == first and [entry.get("workers") for entry in resumed] == [3, None]
    assert resumed[0]["after"] == "1 epoch and 2 batches" and "keep" not in resumed[0]
    assert [was_started_by(tmp_path, name) for name in ("a", "b", "c", "d", None)] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_start_weights_must_agree(data, tmp_path, monkeypatch, weights):
    """A run that started from weights is not adopted by one that would not."""
    assert run(data, tmp_path / "one", "--epochs", "1") == 0
    best = str(tmp_path / "one/best.pt")
    assert run(data, tmp_path / "two", "--epochs", "1", "--pretrained", best) == 0
    for resume in ("auto", str(tmp_path / "one/last.pt")):
        folder = tmp_path / ("two" if resume == "auto" else "one")
        more = [] if resume == "auto" else ["--pretrained", best]
        with pytest.raises(UserError, match=r"start weights"):
            run(data, folder, "--epochs", "1", "--resume", resume, *more)


@pytest.fixture(scope="module")
def pretrained_run(duts, tmp_path_factory):
    """A run of one epoch from random weights, and one that starts from those."""
    root = tmp_path_factory.mktemp("start")
    flags = ["--data-path", duts, "--img-size", 48, "--crop-size", 40, "--batch-size", 2]
    flags += ["--epochs", 1, "--workers", 0, "--device", "cpu", "--amp", "off"]
    flags = [str(flag) for flag in flags]
    first = [*flags, "--model", str(SMALL_TABLE), "--output-dir", str(root / "first")]
    assert train.main(first) == 0
    start = ["--pretrained", str(root / "first/best.pt")]
    assert train.main([*flags, *start, "--output-dir", str(root / "second")]) == 0
    return flags, root, start


def test_other_start_weights_are_refused(pretrained_run, tmp_path):
    flags, root, start = pretrained_run
    resume = ["--output-dir", str(root / "second"), "--resume", "auto"]
    assert train.main([*flags, *start, *resume]) == 0
    with pytest.raises(UserError, match=r"start weights .* was 'sha256 .*', now None"):
        train.main([*flags, *resume, "--freeze-bn"])
    with pytest.raises(UserError, match=r"start weights .* was 'sha256 .*', now 'sha256 "):
        train.main([*flags, "--pretrained", str(root / "first/last.pt"), *resume])


def test_a_checkpoint_of_before_is_continued(pretrained_run, tmp_path):
    """Its record knows no start weights, and has settings that may change by now."""
    flags, root, start = pretrained_run
    folder = shutil.copytree(root / "second", tmp_path / "old")
    state = torch.load(folder / "last.pt", weights_only=True)
    record = copy.deepcopy(state["flags"])
    del record["start"], record["clip_grad"]
    record |= {"compile": False, "checkpoint_activations": False, "eval_interval": 10}
    torch.save({**state, "flags": record}, folder / "last.pt")
    resume = ["--resume", str(folder / "last.pt"), "--eval-interval", "1"]
    assert train.main([*flags, *start, *resume]) == 0


def test_args_are_kept_by_name(pretrained_run):
    _, root, start = pretrained_run
    args = json.loads((root / "second/args.json").read_text())
    assert set(args) == {*DECLARATIONS, "versions", "launch"} - {"resume"}
    assert args["pretrained"] == start[1] and args["crop_size"] == [40] and args["freeze_bn"]


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("fault", [["--data-path", "nowhere"], ["--pretrained", "none.pt"]])
def test_a_refused_run_leaves_no_folder(data, tmp_path, existed, fault):
    """Nor the folder of all runs, if there was none; with data as without."""
    if existed:
        (tmp_path / "runs").mkdir()
    argv = [sys.executable, ROOT / "train.py", "--data-path", data, *fault]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and fault[1] in done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"] * existed
