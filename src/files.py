"""Files written whole or not at all."""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from .errors import UserError


def save_torch(content: dict[str, Any], path: str | Path) -> None:
    """``torch.save``, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        write_torch(content, temporary)


def write_torch(content: dict[str, Any], temporary: Path) -> None:
    """``torch.save`` to the path that :func:`atomic_path` gives.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError:  # torch's word for a full disk
        raise UserError(f"{temporary.parent}: cannot be written; is the disk full?") from None


def save_json(content: Any, path: str | Path) -> None:
    """Indented JSON, whole or not at all; what JSON doesn't know is written as text."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; after the block it is synced and renamed to ``path``.

    A reader, or a process killed while writing, sees the old file or the new one, never a part.
    The temporary file is gone whatever happens inside the block, but for a kill.

    Raises:
        UserError: the folder can't be made or written to, or the name is too long.
    """
    path = Path(path)
    if len(os.fsencode(path.name)) > 255:  # bytes that most systems allow
        raise UserError(f"{path}: the name is too long; choose a shorter one")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Cut, as a name of 50 characters may have 200 of the 255 bytes that systems allow.
        temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another") from None
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)  # some writers, safetensors', put a file of their own in its place
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:  # a full disk, say
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """After a power cut the new name is there too, where the system can promise that."""
    with suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(path: str | Path) -> None:
    """Before long work whose result goes to ``path``: that it can be written.

    Raises:
        UserError: it is a folder, or its folder can't be made or written to.
    """
    with suppress(_Unwritten), atomic_path(path):
        raise _Unwritten


class _Unwritten(Exception):
    """Leaves :func:`atomic_path` before the file takes its place."""


def clear_temporary(folder: Path) -> None:
    """Remove what killed writers left in ``folder``; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name):
            path.unlink(missing_ok=True)
