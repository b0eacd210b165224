"""A loader's worker processes by each start method: signals, and the end of the main process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.data import ROOT, make_pairs
from helpers.processes import PATIENCE

START = """
import multiprocessing, os, signal, sys
from my_dataset import SegmentationDataset, find_pairs
from src.pictures.images import limit_pixels
from train_utils.data.loaders import eval_loader
from transforms import EvalPreset

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[2])
    data = SegmentationDataset(find_pairs(sys.argv[1]).pairs, EvalPreset(32))
    loader = eval_loader(data, 1, 1)
"""
NOT_FORKED = """
    print(sum(len(indices) for _, _, indices in loader))
    limit_pixels(100)
    loader = eval_loader(data, 1, 1, tolerant=True)
    print(len(list(loader)), len(loader.errors))
"""
SIGNALLED = """
    batches = iter(loader)
    found = next(batches)[2]
    (worker,) = loader._batches._iterator._workers
    status = open(f"/proc/{worker.pid}/status").read()
    server = int(status.split("PPid:")[1].split()[0])
    for pid in {worker.pid, server} - {os.getpid()}:
        os.system(f"kill -TERM {pid}")  # not from this process
    os.system(f"kill -INT {worker.pid}")
    for _, _, indices in batches:
        found += indices
    print(*found, worker.is_alive())
    worker.terminate()  # as multiprocessing does when the main process ends
    worker.join(60)
    print(worker.exitcode, flush=True)
"""
KILLED = """
    next(iter(loader))
    (worker,) = loader._batches._iterator._workers
    print(worker.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_loader(method, what, tmp_path, status=0):
    """What a script prints whose loader of seven images starts its workers by this method."""
    make_pairs(tmp_path / "images", tmp_path / "masks", "abcdefg")
    script = tmp_path / "main.py"
    script.write_text(START + what)
    argv, env = [sys.executable, script, tmp_path, method], {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        argv, timeout=PATIENCE, capture_output=True, text=True, env=os.environ | env
    )
    assert done.returncode == status, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="only Linux tells the sender")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_leave_signals_to_the_main_process(method, tmp_path):
    """SLURM and systemd end every process of a job by SIGTERM, a fork server too; a training still
    saves then."""
    told = run_loader(method, SIGNALLED, tmp_path)
    assert told == [*map(str, range(7)), "True", "0"]


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_that_are_not_forked(method, tmp_path):
    """Know the limit of pixels, and end with the main process: Python 3.14 forks none."""
    assert run_loader(method, NOT_FORKED, tmp_path) == ["7", "0", "7"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_end_with_a_main_process_that_is_killed(method, tmp_path):
    """As for want of memory. A fork server lives as long as its workers, whom torch has wait for
    its end."""
    (worker,) = run_loader(method, KILLED, tmp_path, -signal.SIGKILL)
    end = time.monotonic() + 60
    while Path("/proc", worker).exists():
        assert time.monotonic() < end, "the worker lives on"
        time.sleep(0.1)
