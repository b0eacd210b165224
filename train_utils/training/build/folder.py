"""The run's folder."""

from pathlib import Path

import torch

from src import UserError

from ...config import Settings
from ...distributed import from_main, is_main, is_restarted, on_any_rank
from ..checkpoint import choose_folder, claim_folder, has_checkpoint


def find_folder(settings: Settings, device: torch.device) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to continue from, if any; the same on all ranks.

    Raises:
        UserError: as :func:`~train_utils.training.checkpoint.choose_folder`.
    """
    # A node whose own processes all survived doesn't count the restart: one rank that does decides.
    restarted = on_any_rank(is_restarted(), device)
    if not is_main():
        return from_main(None)
    chosen = choose_folder(
        Path(settings.model or settings.pretrained or "u2net_full").stem,
        resume=settings.resume,
        output_dir=settings.output_dir,
        restarted=restarted,
    )
    if chosen[0].is_dir():  # else claimed when the run begins: earlier errors leave no folder
        claim(*chosen)
    return from_main(chosen)


def claim(folder: Path, checkpoint: Path | None) -> None:
    """Lock a run's folder, on the main rank, until the process ends.

    Args:
        folder: of the run.
        checkpoint: the one that it continues from, if any.

    Raises:
        UserError: another run is writing to it.
    """
    if is_main():
        claim_folder(folder)
        if checkpoint is None and has_checkpoint(folder):  # of a run that has just ended
            raise UserError("already contains a run", "output_dir", folder)
