"""A run that is killed, at any moment, goes on to the same end; a faulty file is passed over."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers.data import ROOT, SMALL_TABLE
from helpers.processes import PATIENCE, children, running, wait_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from src import UserError, build_model, save_model
from src import files as src_files
from train_utils.data import synthetic
from train_utils.training import checkpoint
from train_utils.training.build.folder import choose_folder
from train_utils.training.checkpoint import newest_checkpoint, save_checkpoint
from train_utils.training.records import Log, write_args
from train_utils.training.trainer import Trainer

SIZES = ["--img-size", "40", "--crop-size", "32", "--batch-size", "2", "--device", "cpu"]
RECIPE = ["--model", str(SMALL_TABLE), "--epochs", "8", "--eval-interval", "4", "--ema", "0.9"]
FLAGS = [*SIZES, *RECIPE, "--clip-grad", "1", "--amp", "off"]
KILLS = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_dataset(folder, train=24, test=3, size=48, seed=0)
    return folder


def same(a, b):
    """Whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def life(pipe, argv, halt_in_save=None):
    """A run that tells of each step, and may stop for ever in the middle of a save."""
    original, pid = Trainer.step, os.getpid()

    def told(self, batches):
        pipe.send("step")
        return original(self, batches)

    def halt(*_):
        if os.getpid() == pid:  # not in a loader's worker
            pipe.send("saving")
            time.sleep(600)

    def half_written(content, temporary):
        torch.save(content, temporary)
        with temporary.open("r+b") as file:
            file.truncate(temporary.stat().st_size // 2)
        halt()

    Trainer.step = told
    if halt_in_save == "half written":
        checkpoint.write_torch = half_written
    elif halt_in_save == "not yet renamed":
        checkpoint.write_torch = lambda *args: (
            torch.save(*args), setattr(src_files.os, "fsync", halt)
        )  # fmt: skip
    return train.main(argv)


def test_twenty_kills(data, tmp_path):
    """SIGKILL at random moments, two of them during a save: what the last life leaves equals the
    run that nothing befell, which loaded its pictures with another number of workers."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    argv = ["--data-path", str(data), *FLAGS, "--output-dir"]
    with running(life, [*argv, str(whole), "--workers", "2"]) as (process, pipe):
        process.join(PATIENCE)
        assert process.exitcode == 0
    chance = random.Random(0)
    argv = [*argv, str(killed), "--workers", "0", "--save-every", "2", "--resume", "auto"]
    reached = []
    for kill in range(KILLS):
        halt_in_save = {6: "half written", 13: "not yet renamed"}.get(kill)
        with running(life, argv, halt_in_save) as (process, pipe):
            if halt_in_save:
                while pipe.recv() != "saving":
                    pass
                assert len(list(killed.glob(".last.pt.*.tmp"))) == 1
                assert (killed / "last.pt").exists() == (halt_in_save == "half written")
            else:
                for _ in range(chance.randint(1, 4)):
                    pipe.recv()
                time.sleep(chance.uniform(0, 0.1))
            assert process.is_alive()
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        if found := newest_checkpoint(killed)[0]:
            state = torch.load(found, weights_only=True)
            reached.append((state["epoch"], state["step"]))
    assert reached == sorted(reached) and reached[0][0] == 0 < reached[-1][0] < 8
    with running(life, argv) as (process, pipe):
        process.join(PATIENCE)
        assert process.exitcode == 0
    ours, theirs = (torch.load(f / "last.pt", weights_only=True) for f in (killed, whole))
    for part, value in theirs.items():
        assert same(ours[part], value), part
    best = [torch.load(f / "best.pt", weights_only=True) for f in (killed, whole)]
    assert same(*best)
    assert (killed / "log.csv").read_bytes() == (whole / "log.csv").read_bytes()
    with (killed / "log.csv").open(newline="") as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == list(range(1, 9))
    assert not list(killed.glob(".*.tmp")), "what the killed ones left is gone"
    board = EventAccumulator(str(killed / "tensorboard"), {"scalars": 0}).Reload()
    assert [e.step for e in board.Scalars("epoch/loss")] == list(range(12, 97, 12))
    assert [e.step for e in board.Scalars("step/lr")] == list(range(10, 97, 10))


def test_a_killed_loader(data, tmp_path):
    """As the system kills for want of memory: said in a line, and nothing of the run is lost."""
    folder = tmp_path / "run"
    argv = ["--data-path", str(data), *FLAGS, "--output-dir", str(folder), "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *argv, "--epochs", "500"], cwd=ROOT, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for(folder / "last.pt")
        while process.poll() is None:  # one that ends by itself, with its epoch, is not missed
            for child in children(process.pid)[:1]:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.05)
        errors = process.communicate()[1]
    finally:
        process.kill()
    assert process.returncode == 1 and "Traceback" not in errors
    assert "DataLoader worker" in errors and "--workers" in errors and "--resume auto" in errors
    assert newest_checkpoint(folder)[0] == folder / "last.pt"


def test_a_signal_to_the_whole_group(data, tmp_path):
    """As torchrun, timeout and batch systems send it: the loader's processes get it too."""
    argv = [
        "--data-path",
        str(data),
        *FLAGS,
        "--output-dir",
        str(tmp_path / "run"),
        "--workers",
        "1",
    ]
    command = [sys.executable, "train.py", *argv, "--epochs", "500"]
    process = subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        wait_for(tmp_path / "run/last.pt")
        os.killpg(process.pid, signal.SIGTERM)
        output = process.communicate(timeout=PATIENCE)[0]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped; continue with the same flags and --resume" in output
    assert newest_checkpoint(tmp_path / "run")[0].name == "last.pt"


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """runs/net-2 and runs/net-4 hold runs, runs/net-9 is another network's."""
    monkeypatch.chdir(tmp_path)
    for folder in ("net-2", "net-4", "net-deep-9"):
        save_checkpoint(tmp_path / "runs" / folder, state(0))
    return Path("runs")


def folder_of(*argv, restarted=False):
    given = train.parse_args(["--model", "net", *argv])
    options = {"resume": given.resume, "output_dir": given.output_dir}
    return choose_folder("net", restarted=restarted, **options)


def test_which_folder(numbered):
    """The newest number, whatever gaps there are; a run is never written over."""
    assert folder_of() == (numbered / "net-5", None)
    assert folder_of("--resume", "auto") == (numbered / "net-4", numbered / "net-4/last.pt")
    given = numbered / "net-2"
    assert folder_of("--resume", str(given / "last.pt")) == (given, given / "last.pt")
    (given / "last.pt").rename(given / "last-1.pt")  # killed between two renames
    with pytest.raises(UserError, match="already contains a run"):
        folder_of("--output-dir", str(given))
    with pytest.raises(UserError, match=r"nowhere/last\.pt: no such file"):
        folder_of("--output-dir", str(given), "--resume", "nowhere/last.pt")
    assert folder_of("--output-dir", str(given), "--resume", "auto")[1].name == "last-1.pt"


def test_two_runs_begun_together(tmp_path, monkeypatch):
    """Each has a folder from the start, not when its network is made."""
    monkeypatch.chdir(tmp_path)
    assert [folder_of()[0].name for _ in range(2)] == ["net-1", "net-2"]


def test_a_log_saved_by_another_program(tmp_path):
    (tmp_path / "log.csv").write_text("epoch\n1\n", encoding="utf-16")
    with pytest.raises(UserError, match="saved by another program"):
        Log(tmp_path / "log.csv", 1)


def test_a_restart_finds_its_own_run_alone(numbered, monkeypatch):
    """Not one that was there before, nor one that the first attempt was refused."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ours")
    assert folder_of(restarted=True) == (numbered / "net-5", None)
    with pytest.raises(UserError, match="already contains a run"):
        folder_of("--output-dir", str(numbered / "net-4"), restarted=True)
    write_args(numbered / "net-4", {}, "ours")
    assert folder_of(restarted=True)[1] == numbered / "net-4/last.pt"
    write_args(numbered / "net-4", {}, "another")
    assert folder_of(restarted=True) == (numbered / "net-6", None)  # net-5 was given already


def test_other_pictures_are_refused(data, tmp_path):
    argv = [*FLAGS, "--workers", "0", "--epochs", "1", "--output-dir", str(tmp_path / "run")]
    assert train.main(["--data-path", str(data), *argv]) == 0
    other = tmp_path / "other"
    synthetic.write_dataset(other, train=24, test=3, size=48, seed=0)
    first = sorted((other / "DUTS-TR/DUTS-TR-Image").iterdir())[0]
    for path in (first, other / "DUTS-TR/DUTS-TR-Mask" / f"{first.stem}.png"):
        path.rename(path.with_stem("renamed"))
    with pytest.raises(UserError, match="images was"):
        train.main(["--data-path", str(other), *argv, "--resume", "auto"])
    (tmp_path / "run/log.csv").write_text("epoch;loss\n1;2\n")
    with pytest.raises(UserError, match=r"log\.csv"):
        Log(tmp_path / "run/log.csv", 1)


def state(number):
    """The parts that a checkpoint must have, told apart by a number."""
    return {**dict.fromkeys(checkpoint._PARTS, 0), "step": number}


def numbers(folder):
    found = sorted(folder.glob("last*.pt"), key=lambda p: (len(p.name), p.name))
    return [(p.name, torch.load(p, weights_only=True)["step"]) for p in found]


def test_keep(tmp_path):
    for i in range(5):
        save_checkpoint(tmp_path, state(i), keep=3)
    assert numbers(tmp_path) == [("last.pt", 4), ("last-1.pt", 3), ("last-2.pt", 2)]
    save_checkpoint(tmp_path, state(5), keep=1)
    assert numbers(tmp_path) == [("last.pt", 5)]


@pytest.mark.parametrize("fault", ["torn", "empty", "text", "weights", "missing"])
def test_a_faulty_checkpoint_is_passed_over(tmp_path, fault):
    """Named, and the one before it taken; without one before, nothing is begun in its place."""
    for i in range(2):
        save_checkpoint(tmp_path, state(i), keep=2)
    last = tmp_path / "last.pt"
    if fault == "torn":
        last.write_bytes(last.read_bytes()[:-200])
    elif fault == "weights":
        save_model(build_model("u2net_lite"), last)
    elif fault == "missing":
        last.unlink()
    else:
        last.write_text("" if fault == "empty" else "not a checkpoint")
    found, faults = newest_checkpoint(tmp_path)
    assert found == tmp_path / "last-1.pt"
    assert len(faults) == (fault != "missing") and all("last.pt" in f for f in faults)
    (tmp_path / "last-1.pt").unlink()
    if fault == "missing":
        assert newest_checkpoint(tmp_path) == (None, [])
    else:
        with pytest.raises(UserError, match=r"last\.pt"):
            newest_checkpoint(tmp_path)
