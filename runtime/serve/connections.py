"""Connections over HTTP/1.1: how many there may be, how long one may take to send its headers, and answers sent
in one piece."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEADERS_SECONDS", "JoinedTransport", "connections_of"]

HEADERS_SECONDS = 10.0
BODY = b'{"error":"ServiceUnavailable","code":1,"message":"the server has as many connections as it may"}'
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)


class JoinedTransport:
    """A transport that sends what is written in one step of the event loop together: the headers of an answer and its
    body would else be two calls of the system, and wake the client twice."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send data before the event loop turns to something else."""
        if not data:
            return
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        """Send what is written, and close the connection."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        parts, self._parts = self._parts, []
        if parts:
            self._transport.write(b"".join(parts))


class _Connection(H11Protocol):
    """A connection that is closed if the headers of its request, the first or a later one, do not come in time."""

    most = 0
    seconds = HEADERS_SECONDS
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(cast("asyncio.Transport", JoinedTransport(transport, self.loop)))
        if len(self.connections) > self.most:
            transport.write(FULL)
            transport.close()
            return
        self._judge()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._judge()

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)

    def _judge(self) -> None:
        """Watch the time while a request is expected or its headers come; what follows has a limit of its own."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._calm()
        elif self._late is None:
            self._late = self.loop.call_later(self.seconds, self._end)

    def _calm(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()


def connections_of(most: int, seconds: float = HEADERS_SECONDS) -> type[asyncio.Protocol]:
    """Return the class of a server's connections.

    Args:
        most: how many there may be at the same time; further ones are answered with 503 and closed.
        seconds: how long the headers of a request may take.
    """
    members: dict[str, Any] = {"most": most, "seconds": seconds}
    return cast("type[asyncio.Protocol]", type("Connection", (_Connection,), members))
