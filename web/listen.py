"""The server's socket and process: who may hold a connection, and for how long."""

import errno
import socket
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from src import UserError

from .arrival import PACE, WINDOW

_FAREWELL = 5  # seconds for requests under way when the server is stopped


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: the name or address to listen on.
        port: 0 for a free one.

    Raises:
        UserError: the host is unknown or another machine's, or the port is not to be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family)
    except (socket.gaierror, UnicodeError):
        raise UserError("unknown name or address", "host", repr(host)) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = "in use by another program; choose another one, or 0 for any that is free"
        elif error.errno == errno.EACCES:
            reason = "needs more rights; choose one from 1024 on"
        elif error.errno == errno.EADDRNOTAVAIL:
            raise UserError("not an address of this machine", "host", host) from None
        else:
            raise
        raise UserError(reason, "port", port) from None


def address_of(listener: socket.socket, host: str) -> str:
    """What to type into a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections on which nothing goes on.

    Those are the ones whose next request has not begun within a window of ``WINDOW`` s, and those
    that read less than ``PACE`` bytes of their answer in one. Bodies have :class:`~.Arrivals`.
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
        if self.cycle and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # a stream of events for an open page, which has no end

    def _close_if_idle(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        unread = self._unsent and unsent and unsent > self._unsent - PACE
        at_rest = self.cycle is None or self.cycle.response_complete
        if unread or (at_rest and not unsent and self.cycle is self._last):
            self.transport.abort()
        else:
            self._last, self._unsent = self.cycle, unsent
            self._watch = self.loop.call_later(WINDOW, self._close_if_idle)


def serve(app: Any, listener: socket.socket) -> None:
    """Serve an ASGI application until SIGINT or SIGTERM."""
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=_FAREWELL,
    )
    with suppress(KeyboardInterrupt):  # raised again once all is closed
        uvicorn.Server(config).run([listener])
