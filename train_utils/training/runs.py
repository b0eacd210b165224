"""Which folder a run writes to, and what it goes on from."""

import atexit
import re
from contextlib import suppress
from pathlib import Path

from src import UserError

from ..distributed import launch_id
from .checkpoint import has_checkpoint, newest_checkpoint
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
    if by_path and not Path(resume).is_file():
        raise UserError(f"--resume {resume}: no such file; auto, or a run's last.pt")
    if by_path and output_dir and output_dir.resolve() != given.resolve():
        raise UserError(f"--resume {resume} goes on in {given}; leave out --output-dir")
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    begun = [path for path in Path("runs").glob("*") if path.is_dir() and any(path.iterdir())]
    found = [pattern.fullmatch(path.name) for path in begun]
    number = max((int(match[1]) for match in found if match), default=0)
    newest = given or Path("runs") / f"{name}-{max(number, 1)}"
    if resume == "auto" or (restarted and begun_by(newest, launch_id())):
        checkpoint, passed_over = newest_checkpoint(newest)
        for fault in passed_over:
            print(f"passed over: {fault}", flush=True)
        return newest, checkpoint
    if by_path:
        return given, Path(resume)
    if not given:
        return _claim(name, number + 1), None
    if has_checkpoint(given):
        raise UserError(
            f"{given} holds a run; go on with it by --resume auto, or choose another --output-dir"
        )
    return given, None


def _claim(name: str, number: int) -> Path:
    """The next free folder, made at once, so that of two runs begun together each has its own; gone
    again at the program's end if nothing came into it.
    """
    folder = Path("runs") / f"{name}-{number}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return _claim(name, number + 1)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror})") from None
    atexit.register(_remove_empty, folder)
    return folder


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
