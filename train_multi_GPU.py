"""Train on several GPUs, or in several processes: train.py inside a process group.

    torchrun --nproc_per_node=4 train_multi_GPU.py --data-path DUTS --model u2net_full

The flags are train.py's; --batch-size is per process. NCCL on GPUs, gloo on CPUs; for several
nodes use torchrun's own flags. Without torchrun it continues with one process.
"""

import sys

from train import parse_args, train
from train_utils import cli
from train_utils.distributed import is_launched, process_group


def main(argv: list[str] | None = None) -> int:
    """Parse the flags and train; a note is printed if torchrun is missing."""
    settings = parse_args(argv, __doc__)
    if not is_launched():
        print("Not started by torchrun: continuing with one process", file=sys.stderr)
    with process_group(settings.device):
        return train(settings)


if __name__ == "__main__":
    cli.run(main)
