"""Train on several GPUs, or several processes: the run of train.py inside a process group.

    torchrun --nproc_per_node=4 train_multi_GPU.py --data-path DUTS --model u2net_full

The flags are train.py's; --batch-size is per process. NCCL on GPUs, gloo on CPUs; several nodes by
torchrun's own flags. Without torchrun it goes on with one process.
"""

import sys

import train
from train_utils import cli
from train_utils.distributed import is_launched


def main(argv: list[str] | None = None) -> int:
    """Parse, say so where torchrun is missing, and train."""
    args = train.parse_args(argv, __doc__)
    if not is_launched():
        print("not started by torchrun: going on with one process", file=sys.stderr)
    return train.launch(args)


if __name__ == "__main__":
    cli.run(main)
