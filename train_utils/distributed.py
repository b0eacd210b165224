"""The process group, where there is one; alone, every function here does the plain thing."""

import os
import re
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from src import UserError


def is_launched() -> bool:
    """Whether torchrun, srun or something like them started this process as one of several."""
    return {"RANK", "WORLD_SIZE"} <= {*os.environ, *slurm_environment(os.environ)}


def is_restarted() -> bool:
    """Whether torchrun started these processes anew after one of them had died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def launch_id() -> str | None:
    """What tells this launch of torchrun from others, its restarts included; None without it."""
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"process {os.getppid()}" if name == "none" else name


def launched_rank() -> int:
    """The rank that the launcher gave, known before there is a group; 0 when alone."""
    return int({**slurm_environment(os.environ), **os.environ}.get("RANK", 0))


def slurm_environment(env: MutableMapping[str, str]) -> dict[str, str]:
    """torchrun's variables by those of ``srun``; empty outside a job step of several tasks.

    A batch script's own process, which srun did not start, has the job's variables but not the
    step's, and is alone; so is what is typed into a shell that srun opened.
    """
    shell = "SLURM_PTY_PORT" in env or env.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if "RANK" in env or shell or int(env.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return {}
    hosts = env.get("SLURM_STEP_NODELIST", "localhost")
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", hosts)  # node[03-05,9],other → node03
    job, step = (int(env.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": env.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": env.get("MASTER_ADDR", "".join(first.groups(default=""))),
        # Alike on every node of this step, and not that of another job on them.
        "MASTER_PORT": env.get("MASTER_PORT", str(20_000 + (job * 31 + step) % 40_000)),
    }


@contextmanager
def process_group(device: str = "auto") -> Iterator[None]:
    """Join the launcher's group for the time of the block: NCCL on GPUs, gloo on CPUs.

    Without torchrun's (or SLURM's) environment variables it does nothing: the run goes on alone.

    Raises:
        UserError: the group can't be joined. SystemExit: with status 2 for a UserError of the
            block, which is printed, with the rank, by the first rank that meets it; with status 1
            where another rank has died and taken the group with it.
    """
    os.environ.update(slurm_environment(os.environ))
    if not is_launched():
        yield
        return
    backend = _backend(device)
    try:
        dist.init_process_group(backend, **_fresh_store())
    except (RuntimeError, ValueError) as error:  # a wrong address, a port that is taken
        reason = str(error).splitlines()[0]
        raise UserError(f"rank {launched_rank()} cannot join the others: {reason}") from None
    sound = False
    try:
        yield
        sound = True
    except UserError as error:
        _record(error)
        # Said before the group goes, whose end makes the others leave and torchrun stop this one.
        if _first_to_say(str(error)):
            print(f"error: rank {rank()}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if not _is_lost_peer(error):
            _record(error)
            raise
        reason = str(error).splitlines()[0]
        raise SystemExit(f"rank {rank()}: stops, as another process has ended ({reason})") from None
    except Exception as error:
        _record(error)
        raise
    finally:
        # NCCL would first wait for the others, who wait for this rank: the end of the process,
        # which torchrun then ends everywhere, is what frees them.
        if sound or backend == "gloo":
            dist.destroy_process_group()


def _fresh_store() -> dict[str, Any]:
    """Where restarted processes meet: torchrun sends them to the store of those that died, whose
    addresses they would find there (pytorch issue 135712), so it gets a prefix.

    Nodes count restarts each for itself, so for several of them there is no common prefix: set
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun there.
    """
    env = os.environ
    shared = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not (is_restarted() and shared and env.get("GROUP_WORLD_SIZE") == "1"):
        return {}
    store = dist.TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), is_master=False)
    prefixed = dist.PrefixStore(f"restart {env['TORCHELASTIC_RESTART_COUNT']}", store)
    return {"store": prefixed, "rank": int(env["RANK"]), "world_size": int(env["WORLD_SIZE"])}


def _backend(device: str) -> str:
    if not (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
            raise UserError("several processes cannot share a Mac's GPU; give --device cpu")
        return "gloo"
    local = int(os.environ.get("LOCAL_RANK", 0))
    if "SLURM_STEP_ID" in os.environ and torch.cuda.device_count() == 1:
        local = 0  # srun shows each task its own GPU alone
    if ":" in device or local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine needs a GPU of its own: start as many processes "
            f"as there are GPUs ({torch.cuda.device_count()}), with --device auto"
        )
    torch.cuda.set_device(local)
    return "nccl"


def _record(error: Exception) -> None:
    """Have torchrun name this error as the root cause, not the peers that it takes along."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _first_to_say(message: str) -> bool:
    """False where another rank has met the same error: a wrong flag is told once."""
    try:
        store = dist.distributed_c10d._get_default_store()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        return store.add(f"error/{attempt}/{message}", 1) == 1
    except RuntimeError:  # the store went with the rank that held it
        return True


def _is_lost_peer(error: RuntimeError) -> bool:
    said = "closed by peer", "reset by peer", "Broken pipe"
    return isinstance(error, dist.DistNetworkError) or any(words in str(error) for words in said)


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


def gather(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks, on every rank."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


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
        return values.cpu()
    # NCCL reduces on the GPU; float64 has to stay float64, which Apple's GPU lacks.
    shared = values.to(device if device.type == "cuda" else "cpu", copy=True)
    dist.all_reduce(shared)
    return shared.cpu()
