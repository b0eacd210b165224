"""The run's folder: which one, locked for this run alone, removed if nothing comes of it."""

import atexit
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import torch

from src import UserError
from src.files import real_path
from src.weights.storage import FOLDER

from ...config import Settings
from ...distributed import from_main, is_main, is_restarted, launch_id, on_any_rank
from ..checkpoint import has_checkpoint, newest_checkpoint, refuse_folder
from ..records import was_started_by

_LOCK = ".lock"


def find_folder(settings: Settings, device: torch.device) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to continue from, if any; the same on all ranks.

    Raises:
        UserError: as :func:`choose_folder`.
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


def choose_folder(
    name: str,
    *,
    resume: str | None = None,
    output_dir: Path | None = None,
    restarted: bool = False,
) -> tuple[Path, Path | None]:
    """The run's folder, and the checkpoint to continue from, if any.

    Args:
        name: of the run, for a folder ``runs/name-1``, ``-2`` …
        resume: a checkpoint's path, ``auto``, or None for a new run.
        output_dir: the folder, if one is given.
        restarted: torchrun has restarted the processes; a run started by this same launch is
            continued.

    Raises:
        UserError: the folder holds a run not to continue, or ``resume`` and ``output_dir`` differ.
    """
    if resume not in (None, "auto"):
        return _folder_of(Path(resume), output_dir), Path(resume)
    newest = _newest_number(name)
    folder = output_dir or Path("runs") / f"{name}-{max(newest, 1)}"
    if resume == "auto" or (restarted and was_started_by(folder, launch_id())):
        checkpoint, faults = newest_checkpoint(folder)
        for fault in faults:
            print(f"Skipping a checkpoint: {fault}", flush=True)
        return folder, checkpoint
    if output_dir is None:
        return _make_folder(name, newest + 1), None
    if has_checkpoint(output_dir):
        advice = "continue it with {resume} auto, or choose another {output_dir}"
        raise UserError("already contains a run", "output_dir", output_dir, advice)
    for weights in ("best.pt", *FOLDER):  # the folder's name would still mean these
        if (output_dir / weights).exists():
            advice = "choose another {output_dir}, or move that file away"
            raise UserError(f"already contains a {weights}", "output_dir", output_dir, advice)
    return output_dir, None


_held: dict[Path, TextIO] = {}  # the locks of this process, by folder


def claim_folder(folder: Path) -> None:
    """Lock a run's folder until this process ends, for whatever reason.

    Raises:
        UserError: another run is writing to it, or it cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    folder = folder.absolute()
    if folder in _held:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # loader workers don't inherit it
    except (BlockingIOError, PermissionError):
        lock.close()
        problem = f"{folder}: another run is writing to it"
        raise UserError(
            problem, advice="wait until it ends, or choose another {output_dir}"
        ) from None
    except OSError:  # a file system without locks
        return
    if not _is_there(lock):  # another run's, which has just ended and removed it
        lock.close()
        return claim_folder(folder)
    _held[folder] = lock
    atexit.register(_release, folder)


def _is_there(file: TextIO) -> bool:
    """Whether an open file still exists under its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


def _release(folder: Path) -> None:
    """Remove the lock, and the folder if nothing was written to it."""
    with suppress(OSError):
        (folder / _LOCK).unlink()
    _held.pop(folder).close()
    _remove_empty(folder)


def _folder_of(checkpoint: Path, output_dir: Path | None) -> Path:
    folder = checkpoint.parent
    refuse_folder(checkpoint)
    if not checkpoint.is_file():
        raise UserError("no such file", "resume", checkpoint, "pass auto, or the last.pt of a run")
    if output_dir and real_path(output_dir) != real_path(folder):
        raise UserError(f"its run is in {folder}", "resume", checkpoint, "omit {output_dir}")
    return folder


def _newest_number(name: str) -> int:
    """The highest number of a non-empty folder ``runs/name-…``, else 0."""
    pattern = re.compile(re.escape(name) + r"-(\d+)")
    used = [path for path in Path("runs").glob("*") if path.is_dir() and any(path.iterdir())]
    matches = [pattern.fullmatch(path.name) for path in used]
    return max((int(match[1]) for match in matches if match), default=0)


def _make_folder(name: str, number: int) -> Path:
    """Create the next free folder at once, so that two runs started together get one each; it is
    removed at exit if nothing was written to it.
    """
    folder = Path("runs") / f"{name}-{number}"
    created = [folder] if folder.parent.exists() else [folder, folder.parent]
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return _make_folder(name, number + 1)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror})") from None
    atexit.register(_remove_empty, *created)
    return folder


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
