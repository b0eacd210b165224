"""Files that are written whole or not at all."""

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

    Args:
        content: tensors and plain values by name.
        path: where to write.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        write_torch(content, temporary)


def write_torch(content: dict[str, Any], temporary: Path) -> None:
    """``torch.save`` to the path that :func:`atomic_path` gives.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError:  # what torch raises where the disk is full
        raise UserError(f"{temporary.parent}: cannot be written; is the disk full?") from None


def save_json(content: Any, path: str | Path) -> None:
    """Write indented JSON, whole or not at all; values that JSON has no form for become text."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; after the block it is synced and renamed to ``path``.

    A reader sees the old file or the new one, never a part of it, even if the process is killed.
    The temporary file is removed whatever happens inside the block, except by a kill.

    Raises:
        UserError: the folder cannot be made or written to, or the name is too long.

    Example:
        >>> with atomic_path("scores.txt") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("0.95")
    """
    path = Path(path)
    if len(os.fsencode(path.name)) > 255:  # bytes that most systems allow
        raise UserError(f"{path}: the name is too long; choose a shorter one")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Shortened, as 50 characters may take 200 of the 255 bytes that systems allow.
        temporary = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}.tmp")
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another") from None
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)  # safetensors, for one, replaces the file by one of its own
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:  # a full disk, say
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can promise that."""
    with suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def check_writable(path: str | Path) -> None:
    """Check that ``path`` can be written, before long work whose result goes there.

    Raises:
        UserError: it is a folder, or its folder cannot be made or written to.
    """
    with suppress(_NotWritten), atomic_path(path):
        raise _NotWritten


class _NotWritten(Exception):
    """Leaves :func:`atomic_path` before a file is put at its path."""


def clear_temporary(folder: Path) -> None:
    """Remove the temporary files of killed processes; nobody else may be writing in ``folder``."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name):
            path.unlink(missing_ok=True)
