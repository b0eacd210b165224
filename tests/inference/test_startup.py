"""How a process begins, with little beside torch, which takes most of the time, and how it ends."""

import subprocess
import sys

import pytest
from helpers.data import ROOT, make_scene, save_image

from src.device import return_freed_memory

SCRIPT = """
import sys, torch
before = set(sys.modules)
import predict
assert predict.main(sys.argv[1:]) == 0
print(*sorted(set(sys.modules) - before))
"""


def test_prediction_imports_little(weights, tmp_path):
    picture = save_image(tmp_path / "a.jpg", make_scene()[0])
    argv = ["--weights", weights, "--img-size", "32", "--mode", "cutout", "--refine"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, picture, *argv, "--output", tmp_path / "a.png"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = done.stdout.splitlines()[-1].split()
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    expected = {"PIL", "numpy", "predict", "safetensors", "src", "torch", "tqdm", "train_utils"}
    assert packages <= expected
    assert not any(
        name.startswith(("torch._dynamo", "torch.distributed.elastic")) for name in names
    )


END = """
import atexit, ctypes, sys
from src.device import end_at_once
end_at_once()
atexit.register(print, "python's own clean-up")
libc = ctypes.CDLL(None)
libc.on_exit(libc.abort, None)  # as some libraries while threads are at work
libc.printf(b"of a library\\n")
print("of python")
print("an error", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("line", "status"),
    [("pass", 0), ("sys.exit(3)", 3), ("1 / 0", 1)],
)
def test_processes_end_with_their_status_and_all_that_was_written(line, status, tmp_path):
    """Into files and pipes, which are not written line by line."""
    kept = tmp_path / "kept.txt"
    code = f"{END}\nopened = open({str(kept)!r}, 'w')\nopened.write('x' * 100)\n{line}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    assert sorted(done.stdout.splitlines()) == [
        "of a library",
        "of python",
        "python's own clean-up",
    ]
    assert done.stderr.startswith("an error\n")
    assert (line == "1 / 0") == done.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert kept.read_text() == "x" * 100


RESIDENT = """import ctypes, re, threading
from pathlib import Path
from src.device import keep_freed_memory, return_freed_memory
def resident():
    return int(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_freed_memory_is_returned():
    """Also where a smaller block that is still needed lies behind it."""
    code = """
before = resident()
large, small = libc.malloc(100 << 20), libc.malloc(1000)
ctypes.memset(large, 1, 100 << 20)
libc.free(large)
kept = resident()
return_freed_memory()
print(before, kept, resident(), hasattr(libc, "malloc_trim"))
"""
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    before, kept, after, possible = done.stdout.split()
    if possible == "True":
        assert float(kept) > float(before) + 90 and float(after) < float(before) + 10
    return_freed_memory()  # at any time


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_threads_share_freed_memory():
    """Four threads that need 40 MB each, one after the other, take 40 MB, not 160."""
    code = """
turns = threading.Barrier(4)
def work(number):
    for turn in range(4):
        if turn == number:
            blocks = [libc.malloc(10 << 20) for _ in range(4)]
            for block in blocks:
                ctypes.memset(block, 1, 10 << 20)
            libc.malloc(1000)  # still needed: what lies before it is kept
            for block in blocks:
                libc.free(block)
        turns.wait()
before = resident()
threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(resident() - before, hasattr(libc, "malloc_trim"))
"""
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT + code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown, glibc = done.stdout.split()
    if glibc == "True":
        assert 35 < float(grown) < 60
