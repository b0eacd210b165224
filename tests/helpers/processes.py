"""Processes that a test may kill, and groups of them: forked from one that has imported torch."""

import io
import multiprocessing
import os
import socket
import subprocess
import sys
import time
import traceback
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout

import torch

from train_utils import cli
from train_utils.distributed import process_group

PATIENCE = 600  # seconds: what takes longer hangs, however busy the machine is

_FORK = multiprocessing.get_context("forkserver")  # it runs nothing of torch, so forks are safe
_IMPORTED_LATE = ["matplotlib.figure", "torch.utils.tensorboard", "torchvision.transforms.v2"]
_FORK.set_forkserver_preload(["train", "validation", "predict", *_IMPORTED_LATE])


@contextmanager
def running(function, *args, environment=None):
    """``function(pipe, *args)`` in a process of its own: gives it and our end of the pipe.

    What it prints is not shown; its exit status is what a script's would be.
    """
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_main, args=(function, theirs, args, environment or {}))
    process.start()
    theirs.close()
    try:
        yield process, ours
    finally:
        if process.is_alive():  # else its number may be another's: the forkserver has buried it
            process.kill()
        process.join()


def _main(function, pipe, args, environment):
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        cli.run(lambda: function(pipe, *args))


def torchrun(rank, world, port):
    """The variables that torchrun would give."""
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), **address}


def ranks(world, function, *args, launcher=torchrun, group=True):
    """``function(*args)`` in each of ``world`` processes of one group over gloo.

    Args:
        launcher: gives each one's environment.
        group: False where the function, a script's main, joins the group by itself.

    Returns:
        For each rank: the result, the exit status, and what it wrote to stderr.
    """
    port = free_port()
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                running(_rank, function, args, group, environment=launcher(rank, world, port))
            )
            for rank in range(world)
        ]
        for _, pipe in started:
            assert pipe.poll(PATIENCE), "a rank hangs"
        return [torch.load(io.BytesIO(pipe.recv()), weights_only=False) for _, pipe in started]


def _rank(pipe, function, args, group):
    result, errors = None, io.StringIO()

    def main():
        nonlocal result
        with process_group("cpu") if group else nullcontext():
            result = function(*args)

    with redirect_stderr(errors):
        try:
            cli.run(main)
        except SystemExit as left:
            status = left.code
            if isinstance(status, str):  # as Python does at the end of a script
                print(status, file=sys.stderr)
                status = 1
        except Exception:
            traceback.print_exc()
            status = 1
    told = io.BytesIO()  # not sent as they are: tensors would be shared, and end with this process
    torch.save((result, status, errors.getvalue()), told)
    pipe.send(told.getvalue())


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def wait_for(path):
    """Until a run has written this file."""
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.05)


def children(pid):
    """The processes that a process has started."""
    command = ["ps", "-o", "pid=", "--ppid", str(pid)]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    return [int(number) for number in listed.split()]


def signal_child(process, ready, number, child):
    """Once a run has written ``ready``, signal one of the processes that it started; its output."""
    try:
        wait_for(ready)
        os.kill(children(process.pid)[child], number)
        return process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
