"""Which pages of other origins may use the API from a browser."""

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from .arrival import refusal


class Cors(CORSMiddleware):
    """Starlette's, which answers pages of other origins than these with an error in JSON.

    Args:
        app: the ASGI application that they may use.
        origins: as browsers send them; ``*`` for all.
    """

    def __init__(self, app: Any, origins: Sequence[str]) -> None:
        exposed = ["X-Milliseconds"]
        super().__init__(app, origins, ["GET", "POST"], ["*"], expose_headers=exposed)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a browser that asks whether it may send a request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        origin = request_headers["origin"]
        method = request_headers["access-control-request-method"]
        if self.is_allowed_origin(origin):
            return refusal(403, f"pages of {origin} may use GET and POST, not {method}")
        return refusal(403, f"pages of {origin} may not use this API")


def parse_origin(text: str) -> str:
    """An origin as browsers send it, for argparse.

    Raises:
        ArgumentTypeError: it is none.

    Example:
        >>> parse_origin("https://Example.com:8443")
        'https://example.com:8443'
    """
    if text in ("*", "null"):
        return text
    if not re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]*://[^\s/?#@]+", text):
        expected = "http://NAME or https://NAME:PORT without a path, or '*' for all"
        raise ArgumentTypeError(f"{text!r} is not an origin; give {expected}")
    origin = text.lower()
    default = ":80" if origin.startswith("http:") else ":443"
    return origin.removesuffix(default)  # browsers leave it out
