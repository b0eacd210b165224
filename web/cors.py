"""Lets pages from given other origins use the API in a browser."""

from collections.abc import Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from .arrival import refusal


class Cors(CORSMiddleware):
    """Starlette's middleware, with JSON errors for pages from all other origins.

    Args:
        app: the ASGI application that the pages may use.
        origins: as browsers send them; ``*`` allows all.
    """

    def __init__(self, app: Any, origins: Sequence[str]) -> None:
        exposed = ["X-Milliseconds", "X-Frames"]
        super().__init__(app, origins, ["GET", "POST"], ["*"], expose_headers=exposed)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        origin = request_headers["origin"]
        method = request_headers["access-control-request-method"]
        if self.is_allowed_origin(origin):
            return refusal(403, f"pages from {origin} may use GET and POST, not {method}")
        return refusal(403, f"pages from {origin} may not use this API")
