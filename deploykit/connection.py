"""HTTP connections of a download: where they may lead, and how slow an answer may be."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection, Iterator
from email.message import Message
from typing import IO, Any

__all__ = ["BrokenOffError", "Redirects", "Response", "TooSlowError", "UnreachedError", "one_line", "opener", "paced"]


class BrokenOffError(Exception):
    """An attempt failed, but the received bytes are still valid; ``again``: a retry may succeed."""

    def __init__(self, message: str, *, again: bool = True, advice: str = "") -> None:
        super().__init__(message)
        self.again = again
        self.advice = advice or "check the network and run it again, or pass a mirror with --url"


class UnreachedError(BrokenOffError):
    """The server did not answer."""


class TooSlowError(OSError):
    """Fewer bytes came than a download of any use has."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but not from https to http; urllib itself refuses loops.

    ``last`` is the address that was redirected to; empty: there was no redirect. ``hosts``: the only hosts that may be
    redirected to; None: any.
    """

    def __init__(self, hosts: Collection[str] | None = None) -> None:
        self.last = ""
        self.hosts = hosts

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        fp.close()  # urllib would read what comes with the redirect, however much that is
        scheme = urllib.parse.urlsplit(newurl).scheme.lower()
        source, target = (one_line(address.partition("?")[0]) for address in (req.full_url, newurl))
        if scheme not in ("http", "https"):
            message = f"{source} redirects to {target}, which is neither http nor https"
            raise BrokenOffError(message, again=False, advice="pass another --url")
        if req.full_url.startswith("https:") and scheme != "https":
            message = f"{source} redirects from https to {target}"
            raise BrokenOffError(message, again=False, advice="pass another --url")
        if self.hosts is not None and urllib.parse.urlsplit(newurl).hostname not in self.hosts:
            message = f"{source} redirects to {target}, whose host is not allowed"
            raise BrokenOffError(message, again=False, advice="pass another --url")
        self.last = target
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]  # narrower stubs


class Response(http.client.HTTPResponse):
    """An answer that knows its socket, which urllib forgets."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.socket = sock


def opener(redirects: Redirects, seconds: float) -> urllib.request.OpenerDirector:
    """Return an opener for http and https whose servers have ``seconds`` to send status and headers."""

    class Plain(http.client.HTTPConnection):
        response_class = Response

        def getresponse(self) -> http.client.HTTPResponse:
            with paced(self.sock, seconds, lambda: 0, 1, "the headers"):
                return super().getresponse()

    class Secure(http.client.HTTPSConnection):
        response_class = Response

        def getresponse(self) -> http.client.HTTPResponse:
            with paced(self.sock, seconds, lambda: 0, 1, "the headers"):
                return super().getresponse()

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req)

    return urllib.request.build_opener(redirects, PlainHandler, SecureHandler)


@contextlib.contextmanager
def paced(line: socket.socket, seconds: float, progress: Callable[[], int], least: int, what: str) -> Iterator[None]:
    """Shut the connection down if ``progress`` grows by less than ``least`` in so many seconds.

    A timeout of the socket is for one call, and begins anew with every byte.

    Raises:
        TooSlowError: it was shut down; ``what`` names in the message what came too slowly.
    """
    done, slow = threading.Event(), threading.Event()

    def look() -> None:
        before = progress()
        while not done.wait(seconds):
            if progress() - before < least:
                slow.set()
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(line, socket.SHUT_RDWR)  # of the connection, below TLS
                return
            before = progress()

    watcher = threading.Thread(target=look, daemon=True, name="pace of a download")
    watcher.start()
    error: Exception | None = None
    try:
        yield
    except Exception as e:  # often of the connection that was shut down
        error = e
    finally:
        done.set()
        watcher.join()
    if slow.is_set():
        size = f" ({least:,} bytes in {seconds:g} s are expected)" if least > 1 else f" in {seconds:g} s"
        raise TooSlowError(f"{what} did not come{size}") from error
    if error is not None:
        raise error


def one_line(text: str) -> str:
    """Return the text as one line, without control characters that a server may have sent."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
