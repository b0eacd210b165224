"""``kernels.cpp``, built once on each machine by its own C++ compiler."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from src.errors import UserError
from src.files import atomic_path
from src.weights.named import cache_folder

SWITCH = "U2NET_TOOLKIT_KERNELS"
DTYPES = (torch.float32, torch.bfloat16)  # in the order of the versions in kernels.cpp
_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O2", "-march=native", "-std=c++17", "-fPIC", "-shared", "-Wno-psabi")
_NEEDED = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_PARAMETERS = {  # p: a pointer, n: a size, i: an int, f: a float
    "bn_relu": "pppnnpppppffii",
    "bn_relu_backward": "pppnnpppii",
    "resize": "ppnnnnnnppnppni",
    "pool": "pppppnnnni",
}
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_size_t, "i": ctypes.c_int, "f": ctypes.c_float}
_log = logging.getLogger(__name__)


@cache
def load() -> ctypes.CDLL | None:
    """The library, built if this machine has not built it yet.

    None, with a warning on each node, if that is not possible: without a C++ compiler or a cache
    folder. None, with the reason in the log, where torch's OpenMP cannot be used from outside, as
    on systems other than Linux, or if the environment variable ``U2NET_TOOLKIT_KERNELS`` is
    ``off``. Callers then use torch's own operations.
    """
    try:
        return _load()
    except _NotWantedError as error:
        _log.info("training without compiled kernels: %s", error)
    except _PROBLEMS as error:
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"  # of its node
        level = logging.WARNING if is_first else logging.INFO
        _log.log(level, "training without compiled kernels, which is slower: %s", error)
    return None


@cache
def kernel(name: str, dtype: torch.dtype, wide: bool = False) -> Callable[..., None]:
    """A function of ``kernels.cpp`` by its name.

    Args:
        name: of the function.
        dtype: of its maps, float32 or bfloat16.
        wide: their channels are a multiple of 64, for functions that have a version for these.
    """
    library = load()
    assert library is not None
    versions = (ctypes.c_void_p * 4).in_dll(library, f"{name}_versions")
    types = [_TYPES[letter] for letter in _PARAMETERS[name]]
    address = versions[2 * wide + DTYPES.index(dtype)]
    assert address is not None
    return ctypes.CFUNCTYPE(None, *types)(address)


class _UnavailableError(Exception):
    """Why there is no library."""


class _NotWantedError(Exception):
    """Why there is none, where nothing is amiss."""


_PROBLEMS = (OSError, ValueError, subprocess.SubprocessError, UserError, _UnavailableError)


def _load() -> ctypes.CDLL:
    if os.environ.get(SWITCH, "").lower() in ("off", "0"):
        raise _NotWantedError(f"{SWITCH} is off")
    # The loops run in torch's own threads: its OpenMP must export GCC's symbols to everyone.
    if sys.platform != "linux" or not all(hasattr(ctypes.CDLL(None), name) for name in _NEEDED):
        raise _NotWantedError("torch's OpenMP is not accessible from outside")
    compiler = _find_compiler()
    version = subprocess.run(
        [*compiler, "--version"], capture_output=True, check=True, timeout=60
    ).stdout
    parts = (_SOURCE.read_bytes(), version, " ".join(_FLAGS).encode(), _processor())
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = cache_folder() / f"kernels-{key}.so"
    if not path.is_file():
        _build(compiler, path)
    return ctypes.CDLL(str(path))


def _find_compiler() -> list[str]:
    if named := shlex.split(os.environ.get("CXX", "")):
        return named
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    raise _UnavailableError("no C++ compiler was found")


def _processor() -> bytes:
    """What decides the instructions a compiler may use: processors may share a cache folder."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = {line for line in lines if line.lower().startswith(("flags", "features"))}
    return "\n".join([platform.machine(), *sorted(flags)]).encode()


def _build(compiler: list[str], path: Path) -> None:
    """Compile to ``path`` atomically, as several processes may do it at once."""
    with atomic_path(path) as temporary:
        command = [*compiler, *_FLAGS, "-x", "c++", str(_SOURCE), "-o", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            problem = next(iter(done.stderr.strip().splitlines()), "no message")
            raise _UnavailableError(f"{compiler[0]} failed: {problem}")
