"""Train on several GPUs, or several processes: the run of train.py inside a process group.

    torchrun --nproc_per_node=4 train_multi_GPU.py --data-path DUTS --model u2net_full

The flags are train.py's (`python train.py --help`); --batch-size is per process. NCCL on GPUs,
gloo on CPUs; several nodes by torchrun's own flags.
"""

import os
import sys

import train
from train_utils import cli


def main(argv: list[str] | None = None) -> int:
    """Say so where torchrun is missing, and train."""
    if "RANK" not in os.environ:
        print("not started by torchrun: going on with one process", file=sys.stderr)
    return train.main(argv)


if __name__ == "__main__":
    cli.run(main)
