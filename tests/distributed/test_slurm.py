"""Processes that SLURM's srun has started, without torchrun."""

from helpers.processes import ranks

from train_utils.distributed import gather, rank, slurm_environment, world_size


def test_slurm():
    """srun's variables are torchrun's; the batch script's own process is alone."""
    job = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    assert slurm_environment(job) == {}
    step = {"SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "3"}
    lists = {"gpu[03-04]": "gpu03", "a1,b2": "a1", "n-[7,9]": "n-7", "single": "single"}
    for nodes, first in lists.items():
        found = slurm_environment(
            {**job, **step, "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": nodes}
        )
        assert found["MASTER_ADDR"] == first
        assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("3", "8", "3")
    for alone in ("RANK", "SLURM_PTY_PORT"):  # srun torchrun, and srun --pty bash
        assert slurm_environment({**job, **step, alone: "0"}) == {}


def srun(rank, world, port):
    step = {"SLURM_STEP_NUM_TASKS": world, "SLURM_PROCID": rank, "SLURM_LOCALID": rank}
    return {k: str(v) for k, v in {**step, "MASTER_PORT": port}.items()}


def place():
    # Together: one that leaves while the other still connects is taken for a crash.
    return gather((rank(), world_size()))[rank()]


def test_a_group_by_slurm():
    assert [told[0] for told in ranks(2, place, launcher=srun)] == [(0, 2), (1, 2)]
