"""The server's socket and event loop, and timeouts for idle connections."""

import asyncio
import errno
import json
import socket
from contextlib import suppress
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from src import UserError

from .arrival import PACE, WINDOW, Application, refusal

_FAREWELL = 5  # seconds that open requests get when the server stops


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Args:
        host: the name or address to listen on.
        port: 0 picks a free one.

    Raises:
        UserError: the host is unknown or not this machine, or the port is unavailable.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family)
    except (socket.gaierror, UnicodeError):
        raise UserError("unknown host name or address", "host", repr(host)) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "in use by another program; choose another port, or 0 for any free one"
        elif error.errno == errno.EACCES:
            reason = "permission denied; choose 1024 or higher"
        elif error.errno == errno.EADDRNOTAVAIL:
            raise UserError("not an address of this machine", "host", host) from None
        else:
            raise
        raise UserError(reason, "port", port) from None


def address_of(listener: socket.socket, host: str) -> str:
    """The URL to open in a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes idle connections.

    That is, connections that begin no new request within ``WINDOW`` seconds, or that read less than
    ``PACE`` bytes of their response in that time. :class:`~.Arrivals` checks request bodies.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._last, self._unsent = self.cycle, 0
        self._watch = self.loop.call_later(WINDOW, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        if self.cycle and self.cycle.response_started:
            self.transport.close()  # includes an open page's event stream, which never ends
            self.loop.call_later(_FAREWELL / 2, self.transport.abort)  # for slow readers

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with a JSON error, like all others."""
        body = json.dumps({"error": "invalid HTTP/1.1 request, or headers too long"}).encode()
        kind, end = (b"content-type", b"application/json"), (b"connection", b"close")
        length = (b"content-length", str(len(body)).encode())
        answer = h11.Response(status_code=400, headers=[kind, length, end], reason=b"Bad Request")
        for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # no WebSockets; uvicorn would log how to install them

    def _close_if_idle(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        unread = self._unsent and unsent and unsent > self._unsent - PACE
        at_rest = self.cycle is None or self.cycle.response_complete
        if unread or (at_rest and not unsent and self.cycle is self._last):
            self.transport.abort()
        else:
            self._last, self._unsent = self.cycle, unsent
            self._watch = self.loop.call_later(WINDOW, self._close_if_idle)


def excuse(app: Application) -> Application:
    """Answer requests that are aborted by the server's shutdown with an error."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        started = False

        async def note(message: Any) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, note)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not started:
                text = "the server is shutting down; try again later"
                await refusal(503, text, {"connection": "close"})(scope, receive, send)

    return answer


def make_server(app: Application) -> uvicorn.Server:
    """A server for an ASGI application."""
    config = uvicorn.Config(
        excuse(app),
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_FAREWELL,
    )
    return uvicorn.Server(config)


def serve(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM. Threads may still be working on aborted requests."""
    loop = (server.config.get_loop_factory() or asyncio.new_event_loop)()
    asyncio.set_event_loop(loop)
    try:
        with suppress(KeyboardInterrupt):  # re-raised once everything is closed
            loop.run_until_complete(server.serve([listener]))
    finally:
        loop.run_until_complete(_end_tasks())
        loop.close()


async def _end_tasks() -> None:
    """Cancel all tasks. asyncio.run does so too, but would also wait for those threads."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.wait([*tasks, asyncio.create_task(asyncio.sleep(0))], timeout=1)
