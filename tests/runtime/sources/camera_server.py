"""A local web server with images, videos and live streams, which tests stop, start and damage."""

from __future__ import annotations

import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from deploykit.runtime.arrays import Array

SEGMENT = 10  # frames
FPS = 25.0


def frame(number: int, size: tuple[int, int] = (48, 64)) -> Array:
    """Return a grey frame whose shade tells its number, 0 to 24."""
    return np.full((*size, 3), 5 + 10 * (number % 25), np.uint8)


def number_of(image: Array) -> int:
    """Return the number of a frame, in spite of the compression."""
    return round((float(image.mean()) - 5) / 10)


def jpeg(number: int) -> bytes:
    """Return a frame as a JPEG file."""
    return cv2.imencode(".jpg", frame(number))[1].tobytes()


def write_segment(file: Path, first: int) -> Path:
    """Write an MPEG-TS segment of :data:`SEGMENT` frames."""
    writer = cv2.VideoWriter(str(file), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), FPS, (64, 48))
    assert writer.isOpened()
    for i in range(SEGMENT):
        writer.write(frame(first + i))
    writer.release()
    return file


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path."""

    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        name = self.path.partition("?")[0].split("/")[1]
        getattr(self, f"send_{name}", self.send_missing)()

    def log_message(self, *_: Any) -> None:
        pass

    def _start(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def send_missing(self) -> None:
        self._start(404, Content_Length=0)

    def send_file(self) -> None:
        """Send a file of the folder."""
        file = self.server.folder / urllib.parse.unquote(self.path.partition("?")[0].split("/", 2)[2])
        if not file.is_file():
            self.send_missing()
            return
        data = file.read_bytes()
        self._start(Content_Length=len(data))
        self.wfile.write(data)

    def send_private(self) -> None:
        """Send an image to the user who knows the password."""
        if self.headers.get("Authorization") != "Basic YW5uYTpwQHNz":  # anna:p@ss
            self._start(401, Content_Length=0)
            return
        self._start(Content_Length=len(jpeg(1)))
        self.wfile.write(jpeg(1))

    def send_cut(self) -> None:
        """Break off in the middle."""
        self._start(Content_Length=5000)
        self.wfile.write(jpeg(1)[:300])

    def send_large(self) -> None:
        """Declare more than any image has."""
        self._start(Content_Length=1 << 40)

    def send_endless(self) -> None:
        """Send without an end, and without a length."""
        self._start()
        while not self.server.stopped.is_set():
            self.wfile.write(jpeg(1) + bytes(1 << 20))

    def send_stalled(self) -> None:
        """Send the headers and then nothing."""
        self._start(Content_Length=5000)
        self.server.stopped.wait(20)

    def send_page(self) -> None:
        self._start(Content_Type="text/html")
        self.wfile.write(b"<!DOCTYPE html><p>Please log in")

    def send_error(self, *args: Any, **options: Any) -> None:  # a path of ours, and a method of the base
        if args:
            super().send_error(*args, **options)
            return
        self._start(503, Content_Length=0)

    def send_moved(self) -> None:
        self._start(302, Location=self.server.target, Content_Length=0)

    def send_mjpeg(self) -> None:
        """Send images that replace each other, as cameras do, until the server pauses or the stream has its length."""
        if self.server.paused.is_set():
            self._start(503, Content_Length=0)
            return
        self._start(Content_Type="multipart/x-mixed-replace; boundary=frame")
        sent = 0
        while sent < self.server.length and not (self.server.paused.is_set() or self.server.stopped.is_set()):
            data = jpeg(self.server.sent)
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(data))
            self.wfile.write(data + b"\r\n")
            self.server.sent += 1
            sent += 1
            time.sleep(self.server.interval)


class Server(ThreadingHTTPServer):
    """The server, in a thread of its own while the context lasts.

    ``sent``: frames of the MJPEG stream so far; ``length``: how many each connection gets; ``interval``: seconds from
    one to the next; ``paused``: connections break off and are refused.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopped, self.paused = threading.Event(), threading.Event()
        self.sent, self.length, self.interval = 0, 10**9, 0.02
        self.target = ""

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that hang up."""

    def address(self, path: str, user: str = "") -> str:
        """Return the address of a path."""
        return f"http://{user}127.0.0.1:{self.server_port}/{path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self.shutdown()
        self.server_close()
