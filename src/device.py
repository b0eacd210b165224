"""Picks the device and the precision to compute with, and manages threads and memory."""

import atexit
import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import torch

from .compat import cpu_has_bf16
from .errors import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}
AMP_CHOICES = ("auto", *_DTYPES)


def pick_device(name: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` is the GPU if there is one (CUDA,
            then Apple's MPS), else the CPU.

    Returns:
        The device, a GPU with its index.

    Raises:
        UserError: the device is unknown or not on this machine.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("choose auto, cpu, cuda, cuda:1 … or mps")
        # With its index: plain "cuda" is the current device, and each thread has its own.
        device = torch.empty(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        # Its first sentence only: without a Mac's GPU, torch lists all its backends.
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise UserError(f"not usable here ({reason}); try cpu", "device", name) from None
    return device


def pick_dtype(amp: str, device: torch.device) -> torch.dtype:
    """The precision of the convolutions.

    Args:
        amp: ``bf16``, ``fp16`` or ``off`` (float32). ``auto`` is bfloat16 where the hardware
            computes in it (GPUs from Ampere on, processors with AVX512-BF16 or AMX) and float32
            elsewhere; float16 is never chosen automatically, as training in it needs a loss scaler.
        device: where the convolutions run.

    Returns:
        ``torch.float32``, ``torch.bfloat16`` or ``torch.float16``.

    Raises:
        UserError: an unknown name, or fp16 on a CPU (slow there, and no better than bf16).

    Example:
        >>> pick_dtype("off", torch.device("cpu"))
        torch.float32
    """
    if amp not in AMP_CHOICES:
        raise UserError(f"expected one of {', '.join(AMP_CHOICES)}", "amp", amp)
    if amp == "fp16" and device.type == "cpu":
        raise UserError("needs a GPU; on a CPU use auto, bf16 or off", "amp", amp)
    if amp == "auto":
        amp = "bf16" if _has_fast_bf16(device) else "off"
    return _DTYPES[amp]


def amp_name(dtype: torch.dtype) -> str:
    """The name for which :func:`pick_dtype` returns this precision.

    Example:
        >>> amp_name(torch.float16)
        'fp16'
    """
    return next(name for name, known in _DTYPES.items() if known == dtype)


class _Cores:
    """The cores that all users of :func:`per_core` share; ``total`` is valid while there are
    any."""

    lock = Lock()
    users = 0
    total = 1


class _Process:
    """State of this process; ``forks`` differs from that of its parent after a fork."""

    forks = 0


def fork_count() -> int:
    """A number that changes in a forked process, to detect objects that cannot be used there.

    Threads do not survive ``os.fork``: torch's worker threads are missing in the child, which would
    wait for them forever. So importing this module makes torch compute with one thread in each
    forked process, as in the workers of a DataLoader.
    """
    return _Process.forks


def after_fork(reset: Callable[[], None]) -> Callable[[], None]:
    """Decorator that has ``reset`` called in each process forked from this one. Windows has no
    fork.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=reset)
    return reset


@after_fork
def _reset() -> None:
    _Process.forks += 1
    _Cores.lock, _Cores.users = Lock(), 0  # another thread of the parent may have held it
    torch.set_num_threads(1)


@contextmanager
def per_core(tasks: int) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """A pool of threads that compute images in parallel, and the number of its threads.

    There is at most one thread per core, and the threads share the cores evenly: a core with its
    own image never waits for another one. ``torch.set_num_threads`` in a thread also holds for
    threads that start later, so the last user of this function restores the number.

    Args:
        tasks: the number of images; if there are fewer than cores, each gets several cores.

    Yields:
        The pool and its number of threads.
    """
    with _Cores.lock:
        if not _Cores.users:
            _Cores.total = torch.get_num_threads()
        _Cores.users += 1
        cores = _Cores.total
    width = max(1, min(cores, 8, tasks))
    share = (max(1, cores // width),)
    try:
        with ThreadPoolExecutor(width, initializer=torch.set_num_threads, initargs=share) as pool:
            yield pool, width
    finally:
        with _Cores.lock:
            _Cores.users -= 1
            if not _Cores.users:
                torch.set_num_threads(_Cores.total)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute with this thread only.

    torch's other threads spin for some 10 ms after each operation, waiting for the next one, and
    slow down another runtime that uses their cores. As a thread that first uses torch meanwhile
    inherits the setting, this is for short operations.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch looks at the current one
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_bf16()


def describe_computing(*used: tuple[torch.device, str]) -> str:
    """Where a script computes, and in which precisions.

    Example:
        >>> describe_computing((torch.device("cpu"), "bfloat16"), (torch.device("cpu"), "int8"))
        'computing on cpu in bfloat16 and int8'
    """
    precisions: dict[torch.device, list[str]] = {}
    for device, precision in dict.fromkeys(used):
        precisions.setdefault(device, []).append(precision)
    parts = []
    for device, of_device in precisions.items():
        named = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        parts.append(f"on {device}{named} in {' and '.join(of_device)}")
    return f"computing {', '.join(parts)}"


def set_up_process() -> None:
    """Settings for a whole process, which a library leaves to its users."""
    keep_freed_memory()
    keep_float32()


def keep_float32() -> None:
    """Let convolutions in float32 be computed in float32 on NVIDIA GPUs too, for this process.

    By default torch rounds their inputs to TF32 there, of 10 bits, on GPUs from Ampere on.
    """
    torch.backends.cudnn.allow_tf32 = False


def keep_freed_memory() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel after every layer.

    The kernel clears each page before it hands it out: for the activations of a network on the CPU
    that takes up to a quarter of the time (``benchmarks/compute/train_step.py``). All threads share
    one heap: with glibc's default of one per thread, each would keep the most that it ever held.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
        mallopt(m_arena_max, 1)
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)


def return_freed_memory() -> None:
    """Return freed memory to the kernel, before something large is needed."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim:
            trim(0)


def end_at_once() -> None:
    """Let the process exit after Python's own clean-up, without that of the libraries.

    The latter does nothing that the kernel does not do better, but loads code that nothing else has
    needed: 130 MB of torch's CUDA libraries, the most memory that a small run takes. After a fork,
    some of it waits for threads that do not exist; with threads at work, some of it aborts.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # of glibc
        # Added at the very end, as the last one added is called first: a flush of what libraries
        # have printed, then _exit with the exit status. (atexit, too, begins with the last one.)
        atexit.register(libc.on_exit, libc.fcloseall, None)
        atexit.register(libc.on_exit, libc._exit, None)
