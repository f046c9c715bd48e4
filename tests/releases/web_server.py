"""A local web server that behaves well, badly, or as a test's script says."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BODY = bytes(range(256)) * 12_000  # three chunks, the last one not full


@dataclass
class Script:
    """The answers of ``/file/...``, and the requests that it received.

    ``cuts``: the number of body bytes after which each further answer breaks off; None: it does not. ``replies``: a
    status, headers and a body to send instead, request by request; None: the usual answer.
    """

    body: bytes = BODY
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    ranges: bool = True
    sized: bool = True
    cuts: list[int | None] = field(default_factory=list)
    replies: list[tuple[int, dict[str, str], bytes] | None] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """Answers by the first part of the path, for example ``/whole/weights.pt``."""

    protocol_version = "HTTP/1.1"
    released = threading.Event()  # a stalled answer waits for this
    server: QuietServer

    def do_GET(self) -> None:
        getattr(self, f"send_{self.path.split('/')[1]}", self.send_missing)()

    def log_message(self, *_: Any) -> None:
        pass

    def _start(self, status: int, **headers: object) -> None:
        self.close_connection = True
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def send_file(self) -> None:
        """Follow the script: ranges, If-Range, and cuts."""
        script = self.server.script
        script.requests.append(dict(self.headers))
        reply = script.replies.pop(0) if script.replies else None
        if reply is not None:
            self._start(reply[0], **{"Content-Length": len(reply[2]), **reply[1]})
            self.wfile.write(reply[2])
            return
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, *script.headers.values())
        body, status, headers = script.body, 200, dict(script.headers)
        if requested and script.ranges and same:
            start, total = int(requested[1]), len(script.body)
            if start >= total:
                self._start(416, Content_Range=f"bytes */{total}", Content_Length=0)
                return
            body, status = body[start:], 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if script.sized:
            headers["Content-Length"] = str(len(body))
        else:
            headers["Transfer-Encoding"] = "chunked"
        self._start(status, **headers)
        cut = script.cuts.pop(0) if script.cuts else None
        sent = body[:cut]
        if script.sized:
            self.wfile.write(sent)
            return
        self.wfile.write(b"%x\r\n%b" % (len(body), sent) + (b"\r\n0\r\n\r\n" if cut is None else b""))

    def send_slow(self) -> None:
        """Send the beginning, and stall until the test releases it."""
        self.server.script.requests.append(dict(self.headers))
        self._start(200, Content_Length=len(BODY), ETag='"one"')
        self.wfile.write(BODY[:200_000])
        self.wfile.flush()
        self.released.wait(20)

    def send_whole(self) -> None:
        self._start(200, Content_Length=len(BODY))
        self.wfile.write(BODY)

    def send_empty(self) -> None:
        self._start(200, Content_Length=0)

    def send_page(self) -> None:
        page = b"\n <!DOCTYPE html><html><body>Please accept our terms</body></html>"
        self._start(200, Content_Type="text/html", Content_Length=len(page))
        self.wfile.write(page)

    def send_compressed(self) -> None:
        self._start(200, Content_Encoding="gzip", Content_Length=len(BODY))
        self.wfile.write(BODY)

    def send_unsized(self) -> None:
        self._start(200)
        self.wfile.write(BODY)

    def send_misnumbered(self) -> None:
        self._start(200, Content_Length="²")
        self.wfile.write(BODY)

    def send_short(self) -> None:
        self._start(200, Content_Length=len(BODY) + 1000)
        self.wfile.write(BODY)

    def send_chunked(self) -> None:
        self._start(200, Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))

    def send_brokenchunks(self) -> None:
        self._start(200, Transfer_Encoding="chunked")
        self.wfile.write(b"%x\r\n%b" % (len(BODY) + 5, BODY))

    def send_stalled(self) -> None:
        self._start(200, Content_Length=len(BODY))
        self.wfile.write(BODY[:5000])
        self.wfile.flush()
        self.released.wait(10)

    def send_silent(self) -> None:
        self.close_connection = True
        self.released.wait(10)

    def send_garbage(self) -> None:
        self.close_connection = True
        self.wfile.write(b"I am not a web server\r\n\r\n")

    def send_moved(self) -> None:
        self._start(302, Location="/whole/other-name.pt?signature=secret", Content_Length=0)

    def send_movedfile(self) -> None:
        self._start(302, Location="/file/other-name.pt?signature=secret", Content_Length=0)

    def send_toftp(self) -> None:
        self._start(302, Location=f"ftp://127.0.0.1:{self.server.server_port}/weights.pt", Content_Length=0)

    def send_tonobody(self) -> None:
        """Redirect to a port on which nobody listens, with a secret in the query."""
        self._start(302, Location="http://127.0.0.1:1/weights.pt?signature=secret", Content_Length=0)

    def send_tomissing(self) -> None:
        self._start(302, Location="/missing/weights.pt?signature=secret", Content_Length=0)

    def send_movedendless(self) -> None:
        """Redirect, and send a body without end with it."""
        self._start(302, Location="/whole/other-name.pt")
        self._without_end()

    def send_endless(self) -> None:
        self._start(200, ETag='"one"')
        self._without_end()

    def send_endlesslie(self) -> None:
        """A body without end that is announced as chunks."""
        self._start(200, Transfer_Encoding="chunked")
        self._without_end(b"%x\r\n%b\r\n" % (len(BODY), BODY))

    def send_huge(self) -> None:
        self._start(200, Content_Length=10**15)
        self.wfile.write(BODY)

    def send_drip(self) -> None:
        """One byte again and again, so that no timeout of a single call ends it."""
        self._start(200, Content_Length=len(BODY), ETag='"one"')
        self._without_end(b"x", pause=0.02)

    def send_dripchunk(self) -> None:
        """The length of a chunk that never ends."""
        self._start(200, Transfer_Encoding="chunked")
        self._without_end(b"0", pause=0.02)

    def send_dripheader(self) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Name: ")
        self._without_end(b"x", pause=0.02)

    def _without_end(self, part: bytes = BODY, pause: float = 0.0) -> None:
        end = time.monotonic() + 20  # for a client that reads on
        with contextlib.suppress(OSError):  # the client has enough
            while time.monotonic() < end:
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(pause)

    def send_tofile(self) -> None:
        self._start(302, Location="file:///etc/hostname", Content_Length=0)

    def send_circle(self) -> None:
        self._start(302, Location=self.path, Content_Length=0)

    def send_coloured(self) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 404 \x1b[31mNo\r\nContent-Length: 0\r\n\r\n")

    def send_missing(self) -> None:
        self._start(404, Content_Length=0)

    def send_angry(self) -> None:
        self._start(503, Content_Length=0)


class QuietServer(ThreadingHTTPServer):
    """A server with the script that ``/file/...`` follows."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = Script()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that hang up: some tests do so on purpose."""


@contextlib.contextmanager
def serving() -> Iterator[QuietServer]:
    """Run a server in a thread until the end of the block."""
    with QuietServer() as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        Handler.released.clear()
        yield web
        Handler.released.set()
        web.shutdown()
        thread.join(5)
        assert not thread.is_alive()
