"""Timing in turns, and the hardware's limits."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def in_turn(runs: dict[str, Callable[[], object]], rounds: int, calls: int = 1) -> dict[str, float]:
    """Median seconds per call of each.

    Each has a turn in each round, so that drift affects all equally. A turn begins with an untimed
    call: threads of the previous one may still be spinning, and caches hold its data.
    """
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            taken[name] += [seconds(run) for _ in range(calls)]
    return {name: statistics.median(values) for name, values in taken.items()}


def seconds(run: Callable[[], object]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_memory() -> float:
    """The peak resident size of this process so far, in GB. Avoids ``ru_maxrss`` if
    possible: a new process inherits its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def matrix_limit(dtype: torch.dtype, device: str = "cpu", side: int = 4096) -> float:
    """FLOP/s of a large matrix product, the best of five: what a network could reach if all its
    operations were such products."""
    a = torch.randn(side, side).to(device, dtype)
    return 2 * side**3 / _best(lambda: a @ a, device)


def byte_rate(device: str, size: int = 2**28) -> float:
    """Bytes/s that a copy of ``size`` bytes reads and writes on the device, the best of five."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _best(run: Callable[[], object], device: str) -> float:
    def whole() -> None:
        run()
        if device != "cpu":
            torch.cuda.synchronize()

    whole()
    return min(seconds(whole) for _ in range(5))
