"""Connections over HTTP/1.1: how many there may be, how long and how large the headers of a request may be, and
answers sent in one piece."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HEADERS_SECONDS", "JoinedTransport", "connections_of"]

HEADERS_SECONDS = 10.0
HEADERS_BYTES = 1 << 16
FRAMING = 8  # bytes for each one of a body: one that comes in chunks of a byte needs six
BODY = b'{"error":"ServiceUnavailable","code":1,"message":"the server has as many connections as it may"}'
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY)
)
LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


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


class _Connection(HttpToolsProtocol):
    """A connection that is closed if the headers of its request, the first or a later one, do not come in time, or are
    too large. The parser itself has no limit, and takes what follows the last chunk of a body for headers."""

    most = 0
    seconds = HEADERS_SECONDS
    _late: asyncio.TimerHandle | None = None
    _size = 0  # bytes of the request that are not of its body
    _new = 0  # bytes that came last, but for those of a body
    _begun = False  # its headers are complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(cast("asyncio.Transport", JoinedTransport(transport, self.loop)))
        if len(self.connections) > self.most:
            transport.write(FULL)
            transport.close()
            return
        self._judge()

    def data_received(self, data: bytes) -> None:
        self._new = len(data)
        self._size += self._new
        super().data_received(data)
        if self._size > HEADERS_BYTES and not self.transport.is_closing():
            if self._waits():
                self.transport.write(LARGE)
            self.transport.close()
            return
        self._judge()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._size = self._new if self._waits() else 0  # a request that follows another at once came with its end
        self._begun = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._begun:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._begun = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._new -= len(body)
        self._size = max(0, self._size - FRAMING * len(body))
        super().on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._calm()
        super().connection_lost(exc)

    def _judge(self) -> None:
        """Watch the time while a request is expected or its headers come; what follows has a limit of its own."""
        if not self._waits():
            self._calm()
        elif self._late is None:
            self._late = self.loop.call_later(self.seconds, self._end)

    def _waits(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _calm(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _end(self) -> None:
        self._late = None
        if self._waits() and not self.transport.is_closing():
            self.transport.close()


def connections_of(most: int, seconds: float = HEADERS_SECONDS) -> type[asyncio.Protocol]:
    """Return the class of a server's connections.

    Args:
        most: how many there may be at the same time; further ones are answered with 503 and closed.
        seconds: how long the headers of a request may take.
    """
    members: dict[str, Any] = {"most": most, "seconds": seconds}
    return cast("type[asyncio.Protocol]", type("Connection", (_Connection,), members))
