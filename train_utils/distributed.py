"""The process group, if there is one; without it, all functions here work for one process."""

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from src import UserError
from src.files import printable


def is_launched() -> bool:
    """Whether torchrun, srun or something like them started this process as one of several."""
    return {"RANK", "WORLD_SIZE"} <= {*os.environ, *slurm_environment(os.environ)}


def is_restarted() -> bool:
    """Whether torchrun restarted these processes after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def launch_id() -> str | None:
    """An id of this launch of torchrun, the same for its restarts; None without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"process {os.getppid()}" if name == "none" else name


def launched_rank() -> int:
    """The rank that the launcher gave, known before there is a group; 0 when alone."""
    return int({**slurm_environment(os.environ), **os.environ}.get("RANK", 0))


def slurm_environment(env: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables, from those of ``srun``; empty outside a job step of several tasks.

    A batch script's own process, which srun did not start, has the job's variables but not the
    step's, and is alone; so is a command typed into a shell that srun opened.
    """
    shell = "SLURM_PTY_PORT" in env or env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "RANK" in env or shell or int(env.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return {}
    hosts = env.get("SLURM_STEP_NODELIST", "localhost")
    first = re.match(r"([^,\[]*)(?:\[(\w+))?", hosts)  # node[03-05,9],other → node03
    host = "".join(first.groups(default="")) if first else "localhost"
    job, step = (int(env.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": env.get("MASTER_ADDR", host),
        # The same on every node of this step, and different from other jobs' on them.
        "MASTER_PORT": env.get("MASTER_PORT", str(20_000 + (job * 31 + step) % 40_000)),
    }


@contextmanager
def process_group(device: str = "auto") -> Iterator[None]:
    """Join the launcher's group for the duration of the block: NCCL on GPUs, gloo on CPUs.

    Without torchrun's (or SLURM's) environment variables it does nothing: the run is a single
    process. After an error the group is kept, as the others wait for this process: its exit, after
    which torchrun stops them all, is what frees them.

    Raises:
        UserError: the group cannot be joined.
        SystemExit: another process has ended and taken the group with it; the status is 1.
    """
    os.environ.update(slurm_environment(os.environ))
    if not is_launched():
        yield
        return
    _join(_choose_backend(device))
    try:
        yield
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        reason = str(error).splitlines()[0]
        raise SystemExit(f"rank {rank()}: stopping, another process has ended ({reason})") from None
    dist.destroy_process_group()


def _choose_backend(device: str) -> str:
    """gloo for CPUs; NCCL for GPUs, where this process then selects its own."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        torch.cuda.set_device(_own_gpu(device))
        return "nccl"
    if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
        advice = "pass {device} cpu"
        raise UserError("several processes cannot share a Mac's GPU", "device", device, advice)
    return "gloo"


def _own_gpu(device: str) -> int:
    """The number of this process's GPU on its machine."""
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if "SLURM_STEP_ID" in os.environ and count == 1:
        local = 0  # srun shows each task only its own GPU
    if ":" in device or local >= count:
        problem = f"process {local} of this machine needs a GPU of its own"
        advice = f"start as many processes as there are GPUs ({count}), with {{device}} auto"
        raise UserError(problem, "device", device, advice)
    return local


_store: dist.Store | None = None  # of this process's group


def _join(backend: str) -> None:
    """Join the other processes at the address that the launcher gave."""
    global _store
    try:
        store, number, count = next(rendezvous("env://"))
        _store = dist.PrefixStore(_attempt(), store)
        dist.init_process_group(backend, store=_store, rank=number, world_size=count)
    except (RuntimeError, ValueError) as error:  # a wrong address, a port that is taken
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot join the others: {reason}") from None


def _attempt() -> str:
    """A name that restarted processes share: torchrun gives them the store of those that died, in
    which they would find their addresses (pytorch issue 135712).

    Each node counts restarts by itself, so several nodes have no such name: there, torchrun needs
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    env = os.environ
    shared = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    single_node = env.get("GROUP_WORLD_SIZE") == "1"
    count = env.get("TORCHELASTIC_RESTART_COUNT", "0") if shared and single_node else "0"
    return f"attempt {count}"


def record_errors(main: Callable[[], int | None]) -> Callable[[], int | None]:
    """``main``, whose error torchrun reports as the cause, not those of processes that it ends."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return main
    from torch.distributed.elastic.multiprocessing.errors import record

    return record(main)


def no_bar() -> bool | None:
    """For tqdm's ``disable``: only the main rank shows a bar, and only on a terminal."""
    return None if is_main() else True


def is_first_report(message: str) -> bool:
    """False if another process of the group has reported the same error, as with a wrong flag."""
    if _store is None:
        return True
    try:
        _store.add("reports", 1)
        return _store.add(f"error/{printable(message)}", 1) == 1
    except RuntimeError:  # the store is gone with the process that held it
        return True


_reported: set[str] = set()


def is_first(message: str) -> bool:
    """Whether no process of the group, this one included, has asked with this message before."""
    if _store is not None:
        with suppress(RuntimeError):
            return _store.add(f"reported/{printable(message)}", 1) == 1
    known = message in _reported
    _reported.add(message)
    return not known


def wait_for_reports(seconds: float = 5) -> None:
    """Keep the store, if this process holds it, until the others have called
    :func:`is_first_report`; only for some time, as they may be waiting for this process to end.
    """
    held_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if _store is None or held_by_torchrun or launched_rank():
        return
    end = time.monotonic() + seconds
    while _store.add("reports", 0) < world_size() and time.monotonic() < end:
        time.sleep(0.05)


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether another process has left the group; gloo has no exception class for that."""
    texts = "closed by peer", "reset by peer", "Broken pipe"
    return isinstance(error, dist.DistNetworkError) or any(text in str(error) for text in texts)


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


def scatter(make: Callable[[int], Any]) -> Any:
    """This rank's value, of those that rank 0 makes one after the other for each rank."""
    own = None
    for number in range(world_size()):
        value = from_main(make(number) if is_main() else None)
        own = value if number == rank() else own
    return own


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def on_any_rank(condition: bool, device: torch.device) -> bool:
    """Whether a condition is true on any rank, so that all ranks take the same branch."""
    if world_size() == 1:
        return condition
    return bool(sum_over_ranks(torch.tensor(float(condition)), device) > 0)


def share_buffers(model: nn.Module) -> None:
    """Copy rank 0's batch norm statistics to every rank: each has those of its own batches."""
    for buffer in model.buffers() if world_size() > 1 else ():
        dist.broadcast(buffer, 0)


def sum_over_ranks(values: Tensor, device: torch.device) -> Tensor:
    """The sum of each rank's ``values``, on the CPU, the same on every rank."""
    if world_size() == 1:
        return values.cpu()
    # NCCL reduces on the GPU; others on the CPU, as Apple's GPU has no float64.
    shared = values.to(device if device.type == "cuda" else "cpu", copy=True)
    dist.all_reduce(shared)
    return shared.cpu()
