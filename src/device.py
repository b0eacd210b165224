"""Where and in which precision to compute."""

import ctypes
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock

import torch

from .compat import cpu_has_bf16
from .errors import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}
AMP_CHOICES = ("auto", *_DTYPES)


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is the GPU where there is one (CUDA, then Apple's MPS), else the CPU.

    Raises:
        UserError: the device is unknown or not on this machine.
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
        # With its number: "cuda" alone is another one in a thread than where it was set.
        device = torch.empty(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({reason}); try --device cpu") from None
    return device


def pick_dtype(amp: str, device: torch.device) -> torch.dtype:
    """The precision of the convolutions: float32, bfloat16 or float16.

    ``auto`` is bfloat16 where the hardware computes in it (GPUs from Ampere on, processors with
    AVX512-BF16 or AMX) and float32 elsewhere; float16 must be asked for, as it needs a scaler.

    Raises:
        UserError: an unknown name, or fp16 on a CPU (slow there, and gains nothing over bf16).
    """
    if amp not in AMP_CHOICES:
        raise UserError(f"--amp {amp}: choose one of {', '.join(AMP_CHOICES)}")
    if amp == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU; on a CPU use --amp auto, bf16 or off")
    if amp == "auto":
        amp = "bf16" if _has_fast_bf16(device) else "off"
    return _DTYPES[amp]


def amp_name(dtype: torch.dtype) -> str:
    """The name by which :func:`pick_dtype` gives this precision."""
    return next(name for name, known in _DTYPES.items() if known == dtype)


_lock, _users, _cores = Lock(), 0, 1  # of per_core; the cores that its users share


@contextmanager
def per_core(tasks: int) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Threads for pictures that are computed at the same time, and how many: up to one for each
    core, which then share the cores evenly.

    A core with a picture of its own waits for no other. What a thread sets by
    ``torch.set_num_threads`` holds for later ones too, so the last user sets it back.

    Args:
        tasks: how many there are to do.
    """
    global _users, _cores
    with _lock:
        if not _users:
            _cores = torch.get_num_threads()
        _users += 1
        cores = _cores
    width = max(1, min(cores, 8, tasks))
    share = (max(1, cores // width),)
    try:
        with ThreadPoolExecutor(width, initializer=torch.set_num_threads, initargs=share) as pool:
            yield pool, width
    finally:
        with _lock:
            _users -= 1
            if not _users:
                torch.set_num_threads(_cores)


def _has_fast_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_has_bf16()


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, in place of handing it back to the kernel after every layer.

    The kernel clears each page that it hands out anew: for the activations of a network on the CPU
    that takes as much as a quarter of the time (``benchmarks/train_step.py``).
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, -1)
