"""Which folder a run writes to, and what it goes on from."""

import re
from pathlib import Path

from src import UserError

from .checkpoint import has_checkpoint, newest_checkpoint
from .distributed import launch_id
from .records import begun_by


def choose_folder(
    name: str, resume: str | None, output_dir: Path | None, restarted: bool
) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to go on from, if any.

    Args:
        name: of the run, for a folder ``runs/name-1``, ``-2`` …
        resume: a checkpoint's path, ``auto``, or None for a new run.
        output_dir: the folder, where one was asked for.
        restarted: torchrun has started the processes anew: a run that this very launch began is
            gone on with.

    Raises:
        UserError: the folder holds a run that was not to be gone on with, or the two don't agree.
    """
    by_path = resume not in (None, "auto")
    given = Path(resume).parent if by_path else output_dir
    if by_path and output_dir and output_dir.resolve() != given.resolve():
        raise UserError(f"--resume {resume} goes on in {given}; leave out --output-dir")
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    found = [pattern.fullmatch(path.name) for path in Path("runs").glob("*")]
    number = max((int(match[1]) for match in found if match), default=0)
    newest, new = (given or Path("runs") / f"{name}-{n}" for n in (max(number, 1), number + 1))
    if resume == "auto" or (restarted and begun_by(newest, launch_id())):
        checkpoint, passed_over = newest_checkpoint(newest)
        for fault in passed_over:
            print(f"passed over: {fault}", flush=True)
        return newest, checkpoint
    if not by_path and has_checkpoint(new):
        raise UserError(
            f"{new} holds a run; go on with it by --resume auto, or choose another --output-dir"
        )
    return new, Path(resume) if by_path else None
