"""The process group, where there is one; alone, every function here does the plain thing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from src import UserError


def is_launched() -> bool:
    """Whether torchrun, or something like it, started this process as one of several."""
    return "RANK" in os.environ


@contextmanager
def process_group(device: str = "auto") -> Iterator[None]:
    """Join torchrun's group for the time of the block: NCCL on GPUs, gloo on CPUs.

    Without torchrun's environment variables it does nothing: the run goes on alone.
    """
    if not is_launched():
        yield
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        local = int(os.environ.get("LOCAL_RANK", 0))
        if ":" in device or local >= torch.cuda.device_count():
            raise UserError(
                f"process {local} of this machine needs a GPU of its own: start as many processes "
                f"as there are GPUs ({torch.cuda.device_count()}), with --device auto"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """True for the one process that prints and writes."""
    return rank() == 0


def from_main(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def on_any_rank(condition: bool, device: torch.device) -> bool:
    """Whether it holds on one rank or more, so that all take the same turn."""
    if world_size() == 1:
        return condition
    return bool(sum_over_ranks(torch.tensor(float(condition)), device) > 0)


def share_buffers(model: nn.Module) -> None:
    """Rank 0's batch norm statistics, on every rank: each has gathered those of its own batches."""
    for buffer in model.buffers() if world_size() > 1 else ():
        dist.broadcast(buffer, 0)


def sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum of each rank's ``values``, on the CPU, the same on every rank."""
    if world_size() == 1:
        return values
    # NCCL reduces on the GPU; float64 has to stay float64, which Apple's GPU lacks.
    shared = values.to(device if device.type == "cuda" else "cpu")
    dist.all_reduce(shared)
    return shared.cpu()
