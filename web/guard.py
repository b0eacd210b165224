"""Lets through only the few Gradio routes that the page needs, and limits request bodies."""

import re
from pathlib import Path
from typing import Any

from .arrival import Application, Arrivals, refusal
from .page import AT_ONCE, KEPT, lies_in

FOLDER_LIMIT = 10  # full uploads of AT_ONCE images each that the folder may hold
_MESSAGE = 1_000_000  # bytes of a request without images

_NEEDED = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|manifest\.json|(static|assets|svelte)/[^:]*"
    r"|gradio_api/(upload_progress|queue/(join|data)|run/predict|heartbeat/\w+))?"
)
_FILE = "/gradio_api/file="
_NO_FILE = re.compile(r"[\x00-\x1f\x7f]|[^/]{256}|.{2048}")  # no valid file path matches


class Guard:
    """Lets through what the page and the API need, and refuses the rest.

    Some of Gradio's other routes open any URL or file named in the request.

    Args:
        page: the Gradio app, as ASGI.
        api: the ASGI app for all routes below ``/api/``.
        folder: where uploads and results are kept.
        max_bytes: maximum size of an image file.
    """

    def __init__(self, page: Application, api: Application, folder: Path, max_bytes: int) -> None:
        self.folder = folder.resolve()
        self.page, self.api = page, api
        limit, full = AT_ONCE * max_bytes, f"storage is full; try again in {KEPT // 60} minutes"
        self.upload = Arrivals(page, limit, FOLDER_LIMIT * limit, full, self._kept)
        full = "too many requests in progress; try again in a minute"
        self.message = Arrivals(page, _MESSAGE, 100 * _MESSAGE, full)

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        await self._choose(scope)(scope, receive, send)

    def _choose(self, scope: dict) -> Application:
        """The application that handles a request."""
        if scope["type"] == "lifespan":  # the server's start and end
            return self.page
        path = scope["path"]
        if _NO_FILE.search(path.encode(errors="replace").decode("latin-1")):
            return refusal(404, "not found")
        if path.startswith("/api/"):
            return self.api
        if path == "/gradio_api/upload":
            return self.upload
        is_kept = path.startswith(_FILE) and lies_in(Path(path[len(_FILE) :]), self.folder)
        if is_kept or _NEEDED.fullmatch(path):
            return self.message
        return refusal(404, "not found")

    def _kept(self) -> int:
        """Total bytes in the folder."""
        total = 0
        for path in self.folder.rglob("*"):
            try:
                total += path.stat().st_size
            except OSError:  # deleted in the meantime
                continue
        return total
