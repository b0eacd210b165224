"""Published weights by name: downloaded once, checked by their md5, and kept in the user's cache.

pooch downloads them. Of the maintained libraries it is the one that supports md5, the only
checksums published, and it has timeouts; torch.hub's loader has neither, and no library resumes a
download.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError

CACHE, MIRROR = "U2NET_TOOLKIT_CACHE", "U2NET_TOOLKIT_URL"
RELEASE = "https://github.com/danielgatis/rembg/releases/download/v0.0.0"
TIMEOUT = 30.0  # seconds without data
_U2NET = "Qin et al., github.com/xuebinqin/U-2-Net"


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published weights that have a name.

    Args:
        name: of the weights, and of their file: ``NAME.onnx``.
        md5: the checksum of that file.
        megabytes: its size.
        network: the network it holds, a name of :data:`~u2net.NETWORKS`.
        purpose: what it finds in an image.
        authors: who trained it, and where.
        licence: the licence that they published it under.
        preprocessing: what differs from the default: ``img_size``, ``mean`` and ``std``, as in the
            network's table. They are those of the authors' own code.
        classes: what its maps stand for, in order; empty for a single map of the object.
    """

    name: str
    md5: str
    megabytes: float
    network: str
    purpose: str
    authors: str = _U2NET
    licence: str = "Apache-2.0"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        """The file's URL, at a mirror if the environment names one."""
        return f"{(os.environ.get(MIRROR) or RELEASE).rstrip('/')}/{self.name}.onnx"

    @property
    def path(self) -> Path:
        """Where the file is kept; if it is put there by hand, it is not downloaded."""
        return cache_folder() / f"{self.name}.onnx"

    @property
    def converted(self) -> Path:
        """Where the network converted from it is kept, which is faster to read."""
        return self.path.with_suffix(".safetensors")


PUBLISHED = {
    entry.name: entry
    for entry in (
        Published(
            name="u2net",
            md5="60024c5c889badc19c04ad937298a77b",
            megabytes=176,
            network="u2net_full",
            purpose="salient objects, the best masks",
        ),
        Published(
            name="u2netp",
            md5="8e83ca70e441ab06c318d82300c84806",
            megabytes=4.6,
            network="u2net_lite",
            purpose="salient objects, small and fast",
        ),
        Published(
            name="u2net_human_seg",
            md5="c09ddc2e0104f800e3e1bb4652583d1f",
            megabytes=176,
            network="u2net_full",
            purpose="people",
        ),
        Published(
            name="u2net_cloth_seg",
            md5="2434d1f3cb744e0e49386c906e5a08bb",
            megabytes=176,
            network="u2net_full",
            purpose="clothes, by classes",
            authors="L. Abhishek, github.com/levindabhi/cloth-segmentation",
            licence="MIT",
            preprocessing={"img_size": 768, "mean": (0.5,) * 3, "std": (0.5,) * 3},
            classes=("background", "upper body", "lower body", "full body"),
        ),
        Published(
            name="isnet-general-use",
            md5="fc16ebd8b0c10d971d3513d564d01e29",
            megabytes=179,
            network="isnet",
            purpose="objects in fine detail, at 1024²",
            authors="Qin et al., github.com/xuebinqin/DIS",
        ),
        Published(
            name="isnet-anime",
            md5="6f184e756bb3bd901c8849220a83e38e",
            megabytes=176,
            network="isnet",
            purpose="drawn characters, at 1024²",
            authors="SkyTNT, github.com/SkyTNT/anime-segmentation",
            preprocessing={"mean": (0.0,) * 3},
        ),
    )
}
"""By name; the files are those that rembg released, as their authors' own have no fixed URL."""

NAMES = (*PUBLISHED, "lite")
"""All names of weights; ``lite`` are those that come with this toolkit."""


def cache_folder() -> Path:
    """Where published weights are kept: ``U2NET_TOOLKIT_CACHE``, or the platform's cache folder.

    Raises:
        UserError: the user has no home folder.
    """
    try:
        if chosen := os.environ.get(CACHE):
            return Path(chosen).expanduser()
        from platformdirs import user_cache_path

        folder = user_cache_path("u2net-toolkit", appauthor=False)
        if not folder.is_absolute():  # ~, by an older platformdirs
            raise RuntimeError
        return folder
    except RuntimeError:  # a user without a home folder, as in containers
        problem = "there is no home folder to keep files in"
        raise UserError(f"{problem}; set {CACHE} to a folder's full path") from None


def find_onnx(entry: Published) -> Path | None:
    """The published file on this machine, in the cache or where rembg keeps it, with the right md5.
    rembg's own files are only read."""
    return next((path for path in (entry.path, *_of_rembg(entry)) if _md5(path) == entry.md5), None)


def kept_files(weights: str | Path) -> list[Path]:
    """The files on this machine that weights of this name may be read from, which must not be
    overwritten; empty if it is the path of a file.
    """
    entry = PUBLISHED.get(str(weights))
    places = (entry.path, entry.converted, *_of_rembg(entry)) if entry else ()
    return [path for path in places if path.exists()]


def find_published(path: str | Path) -> Published | None:
    """The entry that this file belongs to, wherever it is and whatever its name."""
    md5 = _md5(Path(path))
    return next((entry for entry in PUBLISHED.values() if entry.md5 == md5), None)


def fetch_onnx(entry: Published) -> Path:
    """The published file, downloaded if it is not on this machine. Call it under :func:`alone`.

    Raises:
        UserError: it cannot be downloaded; the message says what was tried and what else can be
            done.
    """
    if found := find_onnx(entry):
        return found
    if entry.path.exists():
        print(f"{entry.path}: is not the published file, which will replace it", file=sys.stderr)
    folder = entry.path.with_suffix(".part")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    try:
        folder.mkdir()
        os.replace(_download(entry, folder), entry.path)
    except Exception as error:
        kept = f"{entry.path} is not the published file; " if entry.path.exists() else ""
        raise UserError(
            f"{entry.name}: {kept}cannot be fetched from {entry.url} ({_reason(error)}); download "
            f"it elsewhere and put it at {entry.path}, or use the weights called lite, which come "
            "with this toolkit"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return entry.path


@contextmanager
def alone(entry: Published) -> Iterator[None]:
    """Let one process at a time download and convert an entry; the others wait.

    Raises:
        UserError: the cache cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(entry.path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print(f"{entry.name}: waiting for another process to fetch it", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise UserError(
            f"{folder}: published weights are kept there, but it cannot be written "
            f"({error.strerror or error}); set {CACHE} to another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _of_rembg(entry: Published) -> Iterator[Path]:
    """Where rembg may have the file: its current folder, and the one of older versions."""
    env, file = os.environ, f"{entry.name}.onnx"
    data = env.get("XDG_DATA_HOME")
    new = env.get("REMBG_HOME") or (f"{data}/rembg" if data else "~/.rembg")
    old = env.get("U2NET_HOME") or f"{data or '~'}/.u2net"
    for folder in (old, new):
        with suppress(RuntimeError):  # a user without a home folder
            home = Path(folder).expanduser()
            yield from (home / file, home / "models" / entry.name / file)


def _md5(path: Path) -> str | None:
    """The md5 of a file; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    except OSError:
        return None


def _download(entry: Published, folder: Path) -> Path:
    """Download into ``folder``, with a progress bar in a terminal; the md5 is checked."""
    import pooch
    from tqdm import tqdm

    pooch.get_logger().setLevel("WARNING")  # it would repeat the next line
    print(f"Fetching {entry.name} ({entry.megabytes:g} MB) from {entry.url}", file=sys.stderr)
    size = round(entry.megabytes * 1e6)  # until the server reports it
    with tqdm(desc=entry.name, total=size, unit="B", unit_scale=True, disable=None) as bar:
        fetch = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 20, timeout=TIMEOUT)
        path = Path(pooch.retrieve(entry.url, None, entry.path.name, folder, downloader=fetch))
    if _md5(path) != entry.md5:
        raise _OtherFile
    return path


class _OtherFile(Exception):
    """The downloaded file is not the published one."""


def _reason(error: Exception) -> str:
    """The error in a few words; requests' own messages are a page long."""
    from requests import exceptions as kinds

    match error:
        case kinds.HTTPError() if error.response is not None:
            return f"{error.response.status_code} {error.response.reason}"
        case kinds.ProxyError():
            return "the proxy cannot be reached, or refuses"
        case kinds.SSLError():
            return "its certificate is not valid"
        case kinds.Timeout():
            return f"no answer within {TIMEOUT:g} seconds"
        case kinds.ChunkedEncodingError() | kinds.ContentDecodingError():
            return "the connection was lost"
        case kinds.ConnectionError():
            timed_out = "timed out" in str(error)
            return f"no answer within {TIMEOUT:g} seconds" if timed_out else "no connection"
        case kinds.RequestException():
            return str(error)
        case OSError():
            return error.strerror or str(error)
        case _OtherFile():
            return "the md5 sum of the download is wrong"
        case ValueError():  # about its length or its redirect
            return f"its answer is not valid HTTP: {error}"
    raise error
