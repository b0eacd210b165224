"""Receives whole request bodies first, within a size limit and at a minimum rate."""

import asyncio
from collections.abc import Awaitable, Callable
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from starlette.responses import JSONResponse

WINDOW = 10  # seconds in which the next PACE bytes of a request, or all the rest, must arrive
PACE = 100_000
_PIECE = 1 << 16  # bytes
_IN_MEMORY = 1_000_000  # bytes of a body; longer ones go to disk

Application = Callable[[Any, Any, Any], Awaitable[None]]


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        status: the HTTP status.
        message: what is wrong and how to fix it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def refusal(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error response: ``{"error": message}``."""
    return JSONResponse({"error": message}, status, headers)


class Arrivals:
    """Passes a request to an ASGI application once its body has arrived.

    So a slow client takes only as much space as it has sent, whatever size it announces, and blocks
    nobody. The application never sees partial bodies.

    Args:
        app: the application.
        limit: maximum bytes of one body.
        budget: maximum bytes of all bodies received or arriving; further requests are refused.
        full: the error message for those.
        stored: returns the bytes of earlier bodies that the application keeps; they count too.
    """

    def __init__(
        self,
        app: Application,
        limit: int,
        budget: int,
        full: str,
        stored: Callable[[], int] = lambda: 0,
    ) -> None:
        self.app, self.limit, self.budget, self.full, self.stored = app, limit, budget, full, stored
        self.held = 0  # bytes of bodies received or arriving

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        with SpooledTemporaryFile(max_size=_IN_MEMORY) as body:
            try:
                if await self._receive(scope, receive, body):
                    body.seek(0)
                    await self.app(scope, _replay(body, receive), send)
            except Refused as error:
                answer = refusal(error.status, error.message, {"connection": "close"})
                await answer(scope, receive, send)
            finally:
                self.held -= body.seek(0, 2)

    async def _receive(self, scope: Any, receive: Any, body: IO[bytes]) -> bool:
        """Write the request's body to ``body``; False if the client has disconnected.

        Raises:
            Refused: it is too long or too slow, or there is no room for it.
        """
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        too_long = Refused(413, f"more than {self.limit // 1_000_000} MB")
        refused = None
        if announced.isdigit() and int(announced) > self.limit:
            refused = too_long
            if b"expect" in headers:  # the client waits for this answer
                raise refused
        room, size = self.budget - self.stored(), 0
        async for part in _paced(receive):
            if part is None:
                return False
            size += len(part)
            if size > self.limit:
                refused = too_long
            elif part and self.held + len(part) > room:
                refused = refused or Refused(503, self.full)
            if not refused:
                self.held += body.write(part)
            # Browsers read no response until they have sent everything, so read on, within limits.
            elif size > 2 * self.limit:
                break
        if refused:
            raise refused
        return True


async def _paced(receive: Any) -> Any:
    """The parts of a body as they arrive; None if the client has disconnected.

    Raises:
        Refused: it is too slow.
    """
    clock = asyncio.get_running_loop().time
    left, arrived, more = float(WINDOW), 0, True
    while more:
        start = clock()
        try:
            async with asyncio.timeout(left):
                message = await receive()
        except TimeoutError:
            text = f"too slow: send at least {PACE // 1000} kB every {WINDOW} s"
            raise Refused(408, text) from None
        if message["type"] == "http.disconnect":
            yield None
            return
        part, more = message.get("body", b""), message.get("more_body", False)
        left, arrived = left - (clock() - start), arrived + len(part)
        if arrived >= PACE:
            left, arrived = float(WINDOW), 0
        yield part


def _replay(body: IO[bytes], receive: Any) -> Any:
    """An ASGI ``receive`` that returns a stored body, then the messages after it."""
    more = True

    async def replay() -> Any:
        nonlocal more
        if not more:
            return await receive()
        part = body.read(_PIECE)
        more = len(part) == _PIECE
        return {"type": "http.request", "body": part, "more_body": more}

    return replay
