"""What a run shows and writes: settings, log, curves, sample sheets, trackers (TensorBoard and
others), and the progress bar.

matplotlib, torchvision and TensorBoard take seconds to import: they are imported where used.
"""

from .args import git_commit, was_started_by, write_args
from .log import Log, draw_curves
from .progress import Progress, mean_losses, peak_memory
from .trackers import check_trackers
from .writer import Records

__all__ = [
    "Log",
    "Progress",
    "Records",
    "check_trackers",
    "draw_curves",
    "git_commit",
    "mean_losses",
    "peak_memory",
    "was_started_by",
    "write_args",
]
