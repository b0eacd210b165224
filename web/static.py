"""The page that runs in the browser, served as static files."""

import mimetypes
import re
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from src import UserError

from .arrival import refusal

_HEADERS = {
    "Cross-Origin-Opener-Policy": "same-origin",  # this and the next one enable threads
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # revalidate before use
}
_METHODS = "GET, HEAD"
_POLICY = re.compile('http-equiv="Content-Security-Policy" content="([^"]+)"')
_TYPES = {  # the system's own list may lack them or differ
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}


class BrowserPage(StaticFiles):
    """The built page as an ASGI application, with the headers it needs.

    Args:
        folder: the output of ``web/browser/build.py``.

    Raises:
        UserError: the folder does not contain a built page.
    """

    def __init__(self, folder: Path) -> None:
        index, policy = folder / "index.html", None
        if (folder / "model.json").is_file() and index.is_file():
            policy = _POLICY.search(index.read_text(encoding="utf-8", errors="replace"))
        if not policy:
            advice = "run make browser in a clone of the toolkit and pass the folder it prints"
            raise UserError(f"no built page found; {advice}", "browser", folder)
        for suffix, kind in _TYPES.items():
            mimetypes.add_type(kind, suffix)
        # The page contains its policy, but the worker, which gets the images, obeys only headers.
        self.headers = {**_HEADERS, "Content-Security-Policy": policy[1]}
        super().__init__(directory=folder, html=True)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":  # the server's start and end
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        try:
            await super().__call__(scope, receive, send)
        except HTTPException as error:
            status, headers = error.status_code, {}
            text = "not found" if status == 404 else str(error.detail)
            if status == 405:
                text = f"{scope['method']} is not allowed here; use {_METHODS}"
                headers = {"Allow": _METHODS}
            await refusal(status, text, headers)(scope, receive, send)

    async def get_response(self, path: str, scope: Any) -> Response:
        """A file, with the headers added."""
        try:
            response = await super().get_response(path, scope)
        except ValueError:  # a null byte or a lone surrogate
            raise HTTPException(404) from None
        response.headers.update(self.headers)
        return response
