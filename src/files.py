"""Writes files completely or not at all, and never over a run's inputs."""

import errno
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .errors import UserError


def save_torch(content: dict[str, Any], path: str | Path) -> None:
    """``torch.save``, completely or not at all.

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
    except RuntimeError:  # torch raises it if the disk is full
        raise UserError(f"{temporary.parent}: cannot be written; is the disk full?") from None


def save_json(content: Any, path: str | Path) -> None:
    """Write indented JSON, completely or not at all; values without a JSON form become strings."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path next to ``path``; after the block it is synced and renamed to ``path``.

    A reader sees the old file or the new one, never a part of it, even if the process is killed.
    The temporary file is removed whatever happens inside the block, except by a kill. A file that
    was there keeps its permissions. A link is kept, and the file that it leads to is written. A
    FIFO or a device, such as ``/dev/null`` or ``/dev/stdout``, gets the content when the block
    ends.

    Raises:
        UserError: the folder cannot be made or written to, the file is read-only, or the name is
            too long.

    Example:
        >>> with atomic_path("scores.txt") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("0.95")
    """
    place, status = _find_place(Path(path))
    if _is_stream(place, status):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / f"result{place.suffix}"
            temporary.touch()
            yield temporary
            with _open_stream(place) as stream, temporary.open("rb") as content:
                shutil.copyfileobj(content, stream)
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from None
    with utf8_path(place.parent) as folder:
        # Shortened, as 50 characters may take 200 of the 255 bytes that systems allow.
        temporary = folder / f".{printable(place.name)[:50]}.{secrets.token_hex(4)}.tmp"
        try:
            temporary.touch(0o600 if status else 0o666, exist_ok=False)
            mode = stat.S_IMODE((status or temporary.stat()).st_mode)
        except OSError as error:
            raise _unwritable(path, error) from None
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            if status:
                with suppress(OSError, AttributeError):  # only root may give files away
                    os.chown(temporary, status.st_uid, status.st_gid)
            temporary.chmod(mode)  # safetensors, for example, replaces the file
            _replace(temporary, place)
            _sync_folder(place.parent)
        except OSError as error:  # such as a full disk
            if error.filename in (None, str(temporary)):
                error.filename = str(path)
            raise
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def utf8_path(path: Path) -> Iterator[Path]:
    """The same file or folder under a UTF-8 name: through a link if its own name is not UTF-8.

    safetensors, ONNX and the C++ parts of torch accept no other names.
    """
    if printable(path) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"link{printable(path.suffix)}"
        link.symlink_to(path.absolute())
        yield link


def real_path(path: Path) -> Path:
    """As ``path.resolve()``, but a loop of links is no error before Python 3.13 either."""
    return Path(os.path.realpath(path))


def _find_place(path: Path) -> tuple[Path, os.stat_result | None]:
    """The target of ``path`` through its links, and its status if it exists.

    Raises:
        UserError: nothing can be written there.
    """
    place = path
    if len(os.fsencode(path.name)) > 255:  # bytes that most systems allow
        raise UserError(f"{path}: the name is too long; choose a shorter one")
    try:
        for _ in range(40):  # as many as Linux follows
            if _descriptor(place) is not None or not place.is_symlink():
                break
            place = place.parent / os.readlink(place)
        else:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        status = place.stat()
    except FileNotFoundError:
        return place, None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise _unwritable(path, error) from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: is a folder; name a file")
    if stat.S_ISBLK(status.st_mode):
        raise UserError(f"{path}: is a disk; name a file")
    if _descriptor(place) is None and not os.access(place, os.W_OK):
        raise UserError(f"{path}: cannot be written (it is read-only); choose another")
    return place, status


def _unwritable(path: str | Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{path}: cannot be written ({reason}); choose another")


def _descriptor(path: Path) -> int | None:
    """The number of an open file of this process, if the path names one."""
    match = re.fullmatch(r"/dev/(std(?:in|out|err))|(?:/dev|/proc/self)/fd/(\d+)", str(path))
    if match is None:
        return None
    return ("stdin", "stdout", "stderr").index(match[1]) if match[1] else int(match[2])


def _is_stream(path: Path, status: os.stat_result | None) -> bool:
    """Whether it can be written, but not replaced: a FIFO, a device, an open file."""
    regular = status is None or stat.S_ISREG(status.st_mode)
    return not regular or (status is not None and _descriptor(path) is not None)


def is_stream(path: Path) -> bool:
    """Whether a path leads to a FIFO, a device or an open file, whatever its name's suffix."""
    try:
        return _is_stream(*_find_place(path))
    except UserError:
        return False


def is_stdout(path: Path) -> bool:
    """Whether a path leads to the same file as standard output."""
    with suppress(OSError, ValueError):  # no such file, or it is not open
        return os.path.samestat(path.stat(), os.fstat(sys.stdout.fileno()))
    return False


def _open_stream(path: Path) -> BinaryIO:
    """A FIFO, a device or an open file of this process, to write to."""
    number = _descriptor(path)
    if number is None:
        return path.open("wb")
    sys.stdout.flush()  # earlier output comes first
    return os.fdopen(os.dup(number), "wb")  # opening it by name would truncate it


def _replace(temporary: Path, place: Path) -> None:
    """Rename; a file that is a mount point (of a container) can only be written in place."""
    try:
        temporary.replace(place)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        shutil.copyfile(temporary, place)


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

    The attempt leaves nothing behind.

    Raises:
        UserError: it is a folder, or its folder cannot be made or written to.
    """
    place, status = _find_place(Path(path))
    if _is_stream(place, status):  # a FIFO would wait for its reader
        return
    above = place.absolute().parents
    made = [folder for folder in above if not os.path.lexists(folder)]
    try:
        with suppress(_NotWritten), atomic_path(place):
            raise _NotWritten
    except UserError as error:
        raise UserError(error.args[0].replace(str(place), str(path), 1)) from None
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def find_overwritten(
    outputs: Iterable[str | Path], inputs: Iterable[str | Path]
) -> tuple[Path, Path] | None:
    """Find an output of a run that is also an input, under any name, links included.

    Args:
        outputs: files that will be written.
        inputs: files that are read; a folder stands for the files in it.

    Returns:
        The output and the input that it would overwrite; None if there is none.

    Example:
        >>> find_overwritten(["mask.png"], ["photo.jpg"])
    """
    written = {}
    for path in map(Path, outputs):
        with suppress(OSError):  # a file that does not exist yet is no input
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                written[status.st_dev, status.st_ino] = path
    for path in map(Path, inputs) if written else ():
        with suppress(OSError):
            for file in path.iterdir() if path.is_dir() else (path,):
                status = file.stat()
                if output := written.get((status.st_dev, status.st_ino)):
                    return output, file
    return None


def check_outputs(
    outputs: Mapping[str, str | Path | Iterable[str | Path] | None],
    inputs: Iterable[str | Path] = (),
) -> None:
    """Check all files that a run will write, before its work.

    Args:
        outputs: the files of each parameter: one, several, or None. In each folder, only the one
            with the longest name is tried. Those under "" have no parameter.
        inputs: all files that the run reads; a folder stands for the files in it.

    Raises:
        UserError: an output cannot be written, is an input, or is written twice.

    Example:
        >>> check_outputs({"json": "a", "csv": "a"})
        Traceback (most recent call last):
        src.errors.UserError: csv a: two results in one file; name another, as json is written there
    """
    several = {
        parameter: [Path(paths)] if isinstance(paths, str | Path) else list(map(Path, paths or ()))
        for parameter, paths in outputs.items()
    }
    places: dict[Path, str] = {}
    for parameter, paths in several.items():
        by_length = sorted(paths, key=lambda path: len(path.name))
        for path in {path.parent: path for path in by_length}.values():
            check_writable(path)
        for path in paths:
            place, status = _find_place(path)
            if _is_stream(place, status):
                continue
            other = places.setdefault(real_path(place), parameter)
            if other != parameter:
                advice = f"name another, as {{{other}}} is written there"
                raise UserError("two results in one file", parameter, path, advice)
    inputs = inputs if len(several) == 1 else list(inputs)  # there may be millions
    for parameter, paths in several.items():
        if found := find_overwritten(paths, inputs):
            output, file = found
            same = "" if str(output) == str(file) else f", {file}"
            text = f"would overwrite an input of this run{same}; name another file"
            raise UserError(text if parameter else f"{output}: {text}", parameter or None, output)


def printable(name: object) -> str:
    """A file's name as text that can be written everywhere; bytes that are not UTF-8 are escaped.

    Example:
        >>> print(printable(os.fsdecode(b"caf\\xe9.png")))
        caf\\udce9.png
    """
    return str(name).encode("utf-8", "backslashreplace").decode()


class _NotWritten(Exception):
    """Leaves :func:`atomic_path` before a file is put at its path."""


def clear_temporary(folder: Path) -> None:
    """Remove temporary files of killed processes; no other process may be writing in ``folder``."""
    for path in folder.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name):
            path.unlink(missing_ok=True)
