"""Tells what a file without weights is instead, before or in place of the errors of the libraries
that read weights."""

import json
import pickletools
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError

_HEAD = 1024  # bytes of a file that tell its kind
_KINDS = (  # first bytes, what that is, what to do
    (b"\x1f\x8b", "compressed by gzip", "unpack it, and give the file in it"),
    (b"BZh", "compressed by bzip2", "unpack it, and give the file in it"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it, and give the file in it"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it, and give the file in it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it, and give the file in it"),
    (b"Rar!", "a RAR archive", "unpack it, and give the file in it"),
    (b"\x89PNG", "an image", "give the weights"),
    (b"\xff\xd8\xff", "an image", "give the weights"),
    (b"\x89HDF", "an HDF5 file, of Keras perhaps", "its weights cannot be read"),
    (b"GGUF", "a GGUF file", "its weights cannot be read"),
    (b"\x93NUMPY", "a NumPy array", "give the weights"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run git lfs pull"),
)
# A pickle that calls one of these is an attack. Other classes, which training scripts leave in
# checkpoints, are skipped.
_DANGEROUS = {
    *("os", "posix", "nt", "sys", "subprocess", "pty", "commands", "importlib", "runpy", "shutil"),
    *("socket", "ctypes", "pickle", "_pickle", "code", "webbrowser", "urllib", "http", "requests"),
    *("torch.hub", "torch.utils.cpp_extension", "multiprocessing", "threading", "asyncio", "pip"),
}
_BUILTINS = {"eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "breakpoint"}


def check_kind(path: Path) -> None:
    """Reject a file that is clearly not weights.

    Args:
        path: of the file.

    Raises:
        UserError: it is something else; the message says what it is, and what to do.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise UserError(f"{path}: is empty; download or copy it again")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise UserError(
            f"{path}: is a web page, saved in place of the weights; download them by their own "
            "link, in a browser perhaps"
        )
    for first, kind, advice in _KINDS:
        if head.startswith(first):
            raise UserError(f"{path}: is {kind}; {advice}")
    if head[4:8] == b"TFL3":
        raise UserError(f"{path}: is a TensorFlow Lite file; its weights cannot be read")
    if head[257:262] == b"ustar" and tarfile.is_tarfile(path):
        raise UserError(f"{path}: is a tar archive; unpack it, and give the file in it")
    if text.startswith((b"{", b"[")) and _is_text(head):
        raise UserError(f"{path}: is JSON, not weights; give the file of weights")
    if head.startswith(b"PK"):
        _check_zip(path)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like a safetensors file, whatever its suffix."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 10**8


def explain(path: Path) -> UserError:
    """Why a file that looked like weights cannot be read: incomplete, or of no known kind."""
    size = path.stat().st_size
    if is_safetensors(path) and (whole := _safetensors_size(path)) and size < whole:
        return UserError(
            f"{path}: truncated: {size:,} of its {whole:,} bytes; download or copy it again"
        )
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PK"):
        return UserError(f"{path}: damaged; download or copy it again")
    if _is_text(head):
        return UserError(f"{path}: is text, not a weights file")
    if _is_plain_pickle(path):
        return UserError(
            f"{path}: is a pickle not written by torch.save; save the state_dict() with torch.save"
        )
    return UserError(f"{path}: truncated, or not a weights file")


def foreign_names(path: Path) -> list[str]:
    """The classes and functions that a torch file, or a plain pickle, refers to, as
    ``module.name``, in order, each once. None of its code is run.

    Raises:
        UserError: reading it would run code, as in an attack.
    """
    names: list[str] = []
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                (record,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
                with archive.open(record) as file:
                    names.extend(_globals(file))  # type: ignore[arg-type]
        else:
            with path.open("rb") as file:
                for _ in range(5):  # the pickles in a file from torch before 1.6
                    names.extend(_globals(file))
    for name in names:
        module, _, function = name.rpartition(".")
        parents = {module, module.partition(".")[0]}
        if parents & _DANGEROUS or (
            module in ("builtins", "__builtin__") and function in _BUILTINS
        ):
            raise UserError(
                f"{path}: refused, as reading it would call {name}, which runs code; weights "
                "never need that: do not trust this file"
            )
    return list(dict.fromkeys(names))


def _globals(file: BinaryIO) -> Iterator[str]:
    texts = ["", ""]  # the last two, which STACK_GLOBAL takes as names
    for operation, value, _ in pickletools.genops(file):
        if operation.name in ("GLOBAL", "INST"):
            yield str(value).replace(" ", ".")
        elif operation.name == "STACK_GLOBAL":
            yield ".".join(texts)
        elif isinstance(value, str):
            texts = [texts[1], value]


def _check_zip(path: Path) -> None:
    """Reject zip archives that torch.save did not write: those without a data.pkl, and programs."""
    if not zipfile.is_zipfile(path):  # the list of contents is at the end
        size = path.stat().st_size
        raise UserError(
            f"{path}: truncated: a torch file whose end is missing after {size:,} bytes; download "
            "or copy it again"
        )
    with zipfile.ZipFile(path) as archive:
        parts = {"/".join(name.split("/")[1:]) for name in archive.namelist()}
    if any(part.startswith(("models/", "data/aotinductor")) for part in parts) or (
        "archive_format" in parts
    ):
        raise UserError(
            f"{path}: is a program of torch.export or AOTInductor, whose "
            "weights cannot be read; give the weights that it was made from"
        )
    if "constants.pkl" in parts and any(part.startswith("code/") for part in parts):
        raise UserError(
            f"{path}: is a TorchScript program; save its state_dict() and give that file"
        )
    if "data.pkl" not in parts:
        raise UserError(
            f"{path}: is a zip archive, not written by torch; unpack it, and give the file in it"
        )


def _safetensors_size(path: Path) -> int | None:
    """The length of a safetensors file by its own header; None if that is cut off too."""
    with path.open("rb") as file, suppress(ValueError, AttributeError, KeyError, TypeError):
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        ends = (t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
        return 8 + length + int(max(ends))
    return None


def _is_plain_pickle(path: Path) -> bool:
    """Whether a file begins with a pickle that holds text; old torch files begin with a number."""
    with path.open("rb") as file, suppress(ValueError, UnicodeDecodeError):
        return any(isinstance(value, str) for _, value, _ in pickletools.genops(file))
    return False


def _is_text(head: bytes) -> bool:
    with suppress(UnicodeDecodeError):
        head[:-4].decode("utf-8")  # a character may be cut in two at the end
        return b"\0" not in head
    return False
