"""Checkpoints of a run: plain tensors, numbers and strings in one file, and the folder they are in.

The newest is ``last.pt``; the ones before it are ``last-1.pt``, ``last-2.pt`` …
"""

import atexit
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from src import UserError
from src.files import atomic_path, write_torch
from src.weights.storage import FOLDER, read_file

from ..config import DECLARATIONS, Settings
from ..distributed import launch_id
from .records import was_started_by

_PARTS = (
    *("model", "config", "flags", "optimizer", "scheduler", "scaler", "ema", "ema_updates"),
    *("epoch", "step", "bad_steps", "best", "sums", "rng"),
)

_LOCK = ".lock"  # in a run's folder
_SHOWN = {"start": "start weights ({pretrained} or {backbone})"}


def save_checkpoint(
    folder: Path, state: dict[str, Any], keep: int = 1, replace: bool = False
) -> None:
    """Write ``last.pt``; earlier checkpoints are renamed.

    If the process is killed at any moment, an intact checkpoint remains under one of the names.

    Args:
        folder: the run's.
        state: from :meth:`Trainer.state_dict`.
        keep: how many to keep, this one included.
        replace: overwrite the newest one, which is of the same step.
    """
    with atomic_path(folder / "last.pt") as temporary:
        write_torch(state, temporary)
        for age, path in [] if replace else reversed(list(_history(folder))):
            if age + 1 < keep:
                path.replace(_path(folder, age + 1))
            elif age:
                path.unlink()


def has_checkpoint(folder: Path) -> bool:
    """Whether a folder has a checkpoint, intact or not."""
    return any(_history(folder))


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to continue from.

    Raises:
        UserError: it is missing, truncated, or holds only weights.
    """
    _refuse_folder(Path(path))
    state = dict(read_file(path))  # plain, as it may be written again
    if absent := [part for part in _PARTS if part not in state]:
        problem = f"holds weights, not the state of a run (no {', '.join(absent[:2])})"
        advice = "pass the last.pt of a run, or start from these weights with {pretrained}"
        raise UserError(problem, "resume", path, advice)
    return state


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest intact checkpoint of a run, and what is wrong with newer ones.

    Raises:
        UserError: there are checkpoints, and none of them is intact.
    """
    faults: list[str] = []
    for _, path in _history(folder):
        try:
            load_checkpoint(path)
        except UserError as error:
            faults.append(str(error))
        else:
            return path, faults
    if faults:
        problem = "\n  ".join([f"{folder}: no usable checkpoint found:", *faults])
        raise UserError(problem, advice="start a new run in another {output_dir}")
    return None, faults


def check_record(settings: Settings, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare a checkpoint's record with that of the run that continues it.

    Args:
        settings: of the run.
        before: the checkpoint's record. Settings that it lacks, if of an older version, count as
            their defaults; other facts that it lacks are not compared.
        now: :meth:`Settings.record`, and the facts that stand for other settings.

    Raises:
        UserError: they differ; the error lists all differences.
    """
    changes = []
    for name, value in now.items():
        is_setting = name in DECLARATIONS
        missing = settings.default(name) if is_setting and name not in before else value
        old = before.get(name, missing)
        if old != value:
            shown = f"{{{name}}}" if is_setting else _SHOWN.get(name, name)
            changes.append(f"{shown} was {old!r}, now {value!r}")
    if changes:
        raise UserError(
            "the checkpoint is from a run with different settings",
            "resume",
            settings.resume,
            advice=f"{'; '.join(changes)}; pass the settings that it was started with, or start a "
            "new run from its weights with {pretrained}",
        )


def _path(folder: Path, age: int) -> Path:
    return folder / (f"last-{age}.pt" if age else "last.pt")


def _history(folder: Path) -> Iterator[tuple[int, Path]]:
    """The checkpoints of a folder, newest first, and how many came after each."""
    ages = [int(path.stem[5:]) for path in folder.glob("last-*.pt") if path.stem[5:].isdigit()]
    for age in sorted({0, *ages}):
        if _path(folder, age).exists():
            yield age, _path(folder, age)


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


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        advice = "pass the last.pt in it, or {resume} auto and {output_dir}"
        raise UserError("is a folder", "resume", path, advice)


def _folder_of(checkpoint: Path, output_dir: Path | None) -> Path:
    folder = checkpoint.parent
    _refuse_folder(checkpoint)
    if not checkpoint.is_file():
        raise UserError("no such file", "resume", checkpoint, "pass auto, or the last.pt of a run")
    if output_dir and output_dir.resolve() != folder.resolve():
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
