"""Two processes over gloo: the run stays one run."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

from train_utils import synthetic

RUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
FLAGS = (
    "--model u2net_lite --img-size 48 --crop-size 40 --batch-size 2 --eval-interval 1 --ema 0.9 "
    "--workers 0 --device cpu --amp off"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthetic.write_dataset(folder, train=9, test=5, size=64, seed=0)
    return folder


def start(script, *argv, launcher=tuple(RUN)):
    command = [*launcher, script, *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=subprocess.STDOUT
    )


def score(data, weights, target, launcher):
    flags = ["--weights", weights, "--data-path", data, "--json", target]
    process = start(
        "validation.py", *flags, "--amp", "off", "--device", "cpu", "--workers", 0,
        launcher=launcher,
    )  # fmt: skip
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return json.loads(target.read_text())


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "ddp"
    argv = ["--data-path", data, "--output-dir", folder, "--epochs", 2, *FLAGS.split()]
    process = start("train_multi_GPU.py", *argv)
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    return folder, output


def test_one_process_writes_and_speaks(run):
    folder, output = run
    assert output.count("epoch 2/2:") == 1 and output.count("best max_f") == 1
    with (folder / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_the_logged_score_is_that_of_the_weights(run, data, tmp_path):
    """Each rank gathers batch norm statistics of its own batches; all must score rank 0's. And any
    number of processes scores alike."""
    folder, _ = run
    best = torch.load(folder / "best.pt", weights_only=True)
    alone = score(data, folder / "best.pt", tmp_path / "1.json", (sys.executable,))
    together = score(data, folder / "best.pt", tmp_path / "2.json", RUN)
    for name in ("mae", "max_f", "max_f_per_image", "mean_f", "adaptive_f"):
        assert together[name] == pytest.approx(alone[name], abs=1e-6), name
        assert best["scores"][name] == pytest.approx(alone[name], abs=1e-4), name
    assert alone["images"] == together["images"] == best["scores"]["images"] == 5


def test_a_signal_to_one_rank_stops_all(data, tmp_path):
    """SIGTERM reaches one process only: both leave after the same step, and last.pt is whole."""
    folder = tmp_path / "run"
    argv = ["--data-path", data, "--output-dir", folder, "--epochs", 200, *FLAGS.split()]
    process = start("train_multi_GPU.py", *argv)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
        ).stdout.split()
        assert len(children) == 2
        os.kill(int(children[1]), signal.SIGTERM)
        output = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert output.count("stopped; go on with --resume") == 1, output
    assert "Connection closed" not in output
    state = torch.load(folder / "last.pt", weights_only=True)
    assert 1 <= state["epoch"] < 200
