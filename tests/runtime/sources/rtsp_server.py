"""A small RTSP server: JPEG frames by RTP (RFC 2435) within the RTSP connection, for a user with a password."""

from __future__ import annotations

import socketserver
import struct
import threading
import time
from types import TracebackType
from typing import Self

from tests.runtime.sources.camera_server import jpeg

SDP = "".join(
    f"{line}\r\n"
    for line in ("v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=t", "t=0 0", "m=video 0 RTP/AVP 26", "a=control:track0")
)
CLOCK, INTERVAL = 90_000, 0.02


def packet(data: bytes, number: int) -> bytes:
    """Return the RTP packet of a JPEG file of 64 x 48 pixels: its quantisation tables and its entropy-coded data."""
    tables, position = b"", 2
    while data[position : position + 2] != b"\xff\xda":
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if data[position + 1] == 0xDB:
            tables += b"".join(segment[i + 1 : i + 65] for i in range(0, len(segment), 65))
        position += 2 + length
    scan = data[position + 2 + int.from_bytes(data[position + 2 : position + 4], "big") : -2]
    rtp = struct.pack(">BBHII", 0x80, 0x80 | 26, number & 0xFFFF, int(number * INTERVAL * CLOCK) & 0xFFFFFFFF, 7)
    header = struct.pack(">IBBBB", 0, 1, 255, 64 // 8, 48 // 8)  # offset 0, 4:2:0, tables included
    return rtp + header + struct.pack(">BBH", 0, 0, len(tables)) + tables + scan


class Handler(socketserver.StreamRequestHandler):
    """One client."""

    server: RtspServer

    def handle(self) -> None:
        while words := self.rfile.readline().split():
            headers = {}
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            self.server.requests.append(" ".join(word.decode() for word in words))
            method, number = words[0].decode(), headers["cseq"]
            if self.server.password and headers.get("authorization") != f"Basic {self.server.password}":
                self._answer("401 Unauthorized", number, 'WWW-Authenticate: Basic realm="camera"\r\n')
            elif method == "DESCRIBE":
                self._answer("200 OK", number, "Content-Type: application/sdp\r\n", SDP)
            elif method == "SETUP" and "interleaved" not in headers["transport"]:
                self._answer("461 Unsupported Transport", number)
            elif method == "SETUP":
                self._answer("200 OK", number, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n")
            else:
                self._answer("200 OK", number, "Session: 1\r\nPublic: DESCRIBE, SETUP, PLAY\r\n")
            if method == "PLAY":
                self._play()
                return

    def _answer(self, status: str, number: str, headers: str = "", body: str = "") -> None:
        head = f"RTSP/1.0 {status}\r\nCSeq: {number}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self.wfile.write((head + body).encode())

    def _play(self) -> None:
        """Send frames until the client goes, the server stops, or this connection had its share."""
        for number in range(self.server.length):
            if self.server.stopped.is_set():
                return
            content = packet(jpeg(number), number)
            try:
                self.wfile.write(b"$\0" + len(content).to_bytes(2, "big") + content)
            except OSError:
                return
            time.sleep(INTERVAL)


class RtspServer(socketserver.ThreadingTCPServer):
    """The server, in a thread of its own while the context lasts; ``length``: frames per connection."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, password: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.password, self.length = password, 10**6
        self.stopped = threading.Event()
        self.requests: list[str] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
