"""Passes the few routes of Gradio that the page needs, and bounds uploads."""

import re
from pathlib import Path
from typing import Any

from fastapi.responses import JSONResponse

from .page import AT_ONCE, KEPT, lies_in

FOLDER_LIMIT = 10  # full uploads, of AT_ONCE images each, that may lie in the folder

_NEEDED = re.compile(
    r"/(config/?|theme\.css|favicon\.ico|manifest\.json|(static|assets|svelte)/[^:]*"
    r"|api/(predict|docs|openapi\.json)"
    r"|gradio_api/(upload|upload_progress|queue/(join|data)|run/predict|heartbeat/\w+))?"
)
_FILE = "/gradio_api/file="


class Guard:
    """Passes what the page and the API ask for, and refuses the rest.

    Some of Gradio's other routes open an address or a file that the request names.

    Args:
        app: the ASGI application behind it.
        folder: where uploads and results lie.
        max_bytes: of an image.
    """

    def __init__(self, app: Any, folder: Path, max_bytes: int) -> None:
        self.app = app
        self.folder = folder.resolve()
        self.upload_limit = AT_ONCE * max_bytes
        self.arriving = 0  # bytes of uploads under way

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        path = scope.get("path")
        if path is None:  # of the server's start and end
            await self.app(scope, receive, send)
        elif not (_NEEDED.fullmatch(path) or self._is_kept(path)):
            await refusal(404, "there is no such page")(scope, receive, send)
        elif path == "/gradio_api/upload":
            await self._upload(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_kept(self, path: str) -> bool:
        """Whether it asks for an upload or a result."""
        file = Path(path.removeprefix(_FILE))
        return path.startswith(_FILE) and lies_in(file, self.folder)

    async def _upload(self, scope: dict, receive: Any, send: Any) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"")
        # The server holds senders to the length that they announce.
        size = int(length) if length.isdigit() else 0
        if size < 1:
            refused = refusal(411, "send a Content-Length")
        elif size > self.upload_limit:
            refused = refusal(413, f"more than {self.upload_limit // 1_000_000} MB at once")
        elif size + self.arriving + self._kept() > FOLDER_LIMIT * self.upload_limit:
            refused = refusal(503, f"full; come back in {KEPT // 60} minutes")
        else:
            self.arriving += size
            try:
                await self.app(scope, receive, send)
            finally:
                self.arriving -= size
            return
        while size and (await receive()).get("more_body"):
            pass  # browsers read no answer before they have sent all
        await refused(scope, receive, send)

    def _kept(self) -> int:
        """Bytes in the folder."""
        total = 0
        for path in self.folder.rglob("*"):
            try:
                total += path.stat().st_size
            except OSError:  # removed meanwhile
                continue
        return total


def refusal(status: int, message: str) -> JSONResponse:
    """An answer that says what is wrong."""
    return JSONResponse({"error": message}, status)
