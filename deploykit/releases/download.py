"""Download one file over HTTP, continuing an earlier download that broke off.

The received bytes lie beside the file under a hidden name, ``.NAME.partial``. ``.NAME.partial.json`` beside it records
the address and the version that they are the beginning of. The server names a version by a strong ETag, or else by
Last-Modified. The next call requests the rest of that version (``Range`` with ``If-Range``, RFC 9110). It downloads
the whole file if the server has another version by now, does not support ranges, or does not understand the request.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from email.message import Message
from pathlib import Path
from typing import IO

from deploykit.atomic import sync, write_atomic
from deploykit.connection import (
    BrokenOffError,
    Redirects,
    Response,
    TooSlowError,
    UnreachedError,
    one_line,
    opener,
    paced,
)
from deploykit.errors import FetchError
from deploykit.strict_json import JsonError, read_json
from deploykit.version import __version__

if sys.platform != "win32":
    import fcntl

__all__ = ["Arrived", "Partial", "download"]

CHUNK = 1 << 20
TIMEOUT = 20.0  # seconds without a received byte
WINDOW, LEAST = 60.0, 60_000  # seconds in which status and headers, and then so many bytes, must come
MOST = 4 << 30  # bytes of a file; the largest released checkpoint has less than 1 GB
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds before each retry; they start again once a chunk has arrived
PAGE = re.compile(rb"\s*<(!doctype|!--|html|head|body|\?xml)", re.IGNORECASE)
TEMPORARY = {408, 425, 429, 500, 502, 503, 504}  # status codes that a retry may not get

OnBytes = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Arrived:
    """A complete download: its size in bytes, and its final address after all redirects."""

    size: int
    final: str


@dataclass(frozen=True)
class _State:
    """The version that a partial file belongs to; ``total`` is None if the server does not report it."""

    address: str
    final: str = ""
    validator: str = ""
    total: int | None = None


class Partial:
    """The hidden file that a download grows in; one process at a time holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f".{path.name}.partial")
        self._state_path = path.with_name(f".{path.name}.partial.json")

    @contextlib.contextmanager
    def held(self) -> Iterator[IO[bytes]]:
        """Open the file while no other process writes to it; Windows has no such lock.

        Raises:
            FetchError: another process holds it.
        """
        while True:
            with self.path.open("ab+") as file:
                if sys.platform != "win32":
                    try:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except OSError as e:
                        raise FetchError(
                            f"another process is downloading to {self.path}: wait for it, or choose another --out"
                        ) from e
                if self._is(file):
                    yield file
                    return

    def _is(self, file: IO[bytes]) -> bool:
        """Return whether it still has its name: an earlier holder may have renamed or removed it."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def state(self, address: str) -> _State:
        """Return the version that the file belongs to; an empty one if none is recorded for ``address``."""
        try:
            state = _State(**read_json(self._state_path))
            strings = all(type(text) is str for text in (state.final, state.validator))
            fits = strings and type(state.total) in (int, type(None)) and state.address == address
            return state if fits and state.validator else _State(address)
        except (OSError, TypeError, JsonError):
            return _State(address)

    def begin(self, file: IO[bytes], state: _State) -> None:
        """Empty the file, then record its version; in this order a crash leaves no wrong record."""
        file.truncate(0)
        write_atomic(self._state_path, json.dumps(asdict(state)).encode())

    def drop(self) -> None:
        """Remove the file and its record."""
        self.path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)

    def describe_remainder(self, address: str, file: IO[bytes]) -> str:
        """Return a sentence about what the next call will continue; if that is nothing, remove the file."""
        done = _size(file)
        if not done or not self.state(address).validator:
            self.drop()
            return ""
        return f"{done:,} bytes are kept in {self.path}: run it again to continue at {done:,}"

    def become(self, path: Path, file: IO[bytes]) -> None:
        """Rename the file, still held as ``file``, to its final name; both are on the disk then."""
        file.flush()
        sync(self.path)
        self._state_path.unlink(missing_ok=True)  # first, because nobody looks for it beside a complete file
        if sys.platform == "win32":  # Windows cannot rename an open file
            file.close()
        self.path.replace(path)
        sync(path.parent)


def download(address: str, partial: Partial, file: IO[bytes], on_bytes: OnBytes, most: int = MOST) -> Arrived:
    """Download ``address`` into ``file``, the opened ``partial``, from where an earlier download broke off.

    Args:
        address: ``http`` or ``https``.
        partial: the growing file; on success it is complete and still has its hidden name.
        file: the file from ``partial.held()``.
        on_bytes: called with the number of received bytes and their total (None: the server does not report it).
        most: bytes of the file; a larger one is refused.

    Raises:
        FetchError: the server refuses, sends something else or too much, is too slow, or breaks off too often. Bytes
            that a later call can continue are kept, and the message says so.
    """
    failures, reached = 0, False
    while True:
        before = _size(file)
        try:
            return _attempt(partial.state(address), partial, file, on_bytes, most)
        except BrokenOffError as e:
            if _size(file) - before >= CHUNK:
                failures = 0
            # Without any answer so far, a retry after a few seconds is pointless.
            reached = reached or not isinstance(e, UnreachedError)
            if not e.again or not reached or failures == len(PAUSES):
                raise FetchError(f"{e}; {partial.describe_remainder(address, file) or e.advice}") from e
            time.sleep(PAUSES[failures])
            failures += 1
        except FetchError:
            partial.drop()
            raise


def _size(file: IO[bytes]) -> int:
    return file.seek(0, 2)


def _attempt(state: _State, partial: Partial, file: IO[bytes], on_bytes: OnBytes, most: int) -> Arrived:
    done = _size(file)
    if not state.validator or (state.total is not None and done > state.total):
        state, done = _State(state.address), 0
    if done and done == state.total:  # an earlier process ended between the last byte and the rename
        on_bytes(done, state.total)
        return Arrived(done, state.final)
    try:
        response = _opened(state, done)
    except urllib.error.HTTPError as e:
        e.close()
        if e.code == 416 and done:  # the server has nothing after our bytes: start again
            partial.begin(file, _State(state.address))
            return _attempt(_State(state.address), partial, file, on_bytes, most)
        answer = f"{_led(state.address, _without_query(e.url))} answered {one_line(f'{e.code} {e.reason}')}"
        advice = "" if e.code in TEMPORARY else "check the address, or pass another --url"
        raise BrokenOffError(answer, again=e.code in TEMPORARY, advice=advice) from e
    with response:
        if done and response.status == 206:
            state = _continued(response, state, done)
        elif response.status == 200:
            state = _version(response, state.address)
            partial.begin(file, state)
        else:
            message = f"{state.address} answered {response.status}, which does not fit the request"
            raise BrokenOffError(message, again=False, advice="check the address, or pass another --url")
        _receive(response, state, file, on_bytes, most)
    _check_content(file, state.address)
    return Arrived(_size(file), state.final)


def _opened(state: _State, done: int) -> Response:
    headers = {"User-Agent": f"deploykit/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": state.validator}
    redirects = Redirects()
    try:
        request = urllib.request.Request(state.address, headers=headers)
        response = opener(redirects, WINDOW).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError:
        raise
    # The last two: an impossible host or port.
    except (OSError, http.client.HTTPException, OverflowError, ValueError) as e:
        advice = "check the network, or pass a mirror with --url"
        message = f"cannot fetch {_led(state.address, redirects.last)}: {_reason(e)}"
        raise UnreachedError(message, advice=advice) from e
    if not isinstance(response, Response):
        raise BrokenOffError(f"{state.address} is not answered over HTTP", again=False, advice="pass another --url")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        response.close()
        message = f"{state.address} sends the file compressed ({one_line(encoding)})"
        raise BrokenOffError(message, again=False, advice="pass another --url")
    return response


def _led(address: str, last: str) -> str:
    """Return the address, and the one that it was redirected to."""
    return address if last in ("", _without_query(address)) else f"{address} (redirected to {last})"


def _version(response: http.client.HTTPResponse, address: str) -> _State:
    """Return the version that a complete answer describes."""
    return _State(address, _without_query(response.url), _validator(response.headers), response.length)


def _without_query(address: str) -> str:
    """Return the address without its query, whose signatures are private and expire."""
    return address.partition("?")[0]


def _validator(headers: Message) -> str:
    """Return the version for If-Range: a strong ETag, or a Last-Modified that no later change can share."""
    etag = str(headers.get("ETag", ""))
    if re.fullmatch(r'"[\x21\x23-\x7e]{1,500}"', etag):
        return etag
    modified = str(headers.get("Last-Modified", ""))
    try:
        age = email.utils.parsedate_to_datetime(str(headers["Date"])) - email.utils.parsedate_to_datetime(modified)
        return modified if age.total_seconds() >= 1 else ""
    except (TypeError, ValueError):  # one is missing or not a date
        return ""


def _continued(response: http.client.HTTPResponse, state: _State, done: int) -> _State:
    """Check that a 206 answer is the rest of the version whose beginning we have."""
    part = str(response.headers.get("Content-Range", ""))
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", part)
    problem = f"{state.address} was asked for the bytes from {done:,} on but sent"
    if match is None or int(match[1]) != done or int(match[2]) < done:
        raise FetchError(f"{problem} {one_line(part) or 'an unnamed part'}: {_AGAIN}")
    total = int(match[2]) + 1 if match[3] == "*" else int(match[3])
    if int(match[2]) + 1 > total or (response.length is not None and response.length != int(match[2]) + 1 - done):
        length = "an unknown number of" if response.length is None else f"{response.length:,}"
        raise FetchError(f"{problem} {one_line(part)} with {length} bytes: {_AGAIN}")
    if state.total not in (None, total):
        raise FetchError(f"{problem} the rest of {total:,} bytes instead of {state.total:,}: {_AGAIN}")
    etag = str(response.headers.get("ETag", ""))
    if etag and state.validator.startswith('"') and etag != state.validator:
        raise FetchError(f"{problem} the rest of another version ({one_line(etag)}, not {state.validator}): {_AGAIN}")
    return replace(state, total=total, final=_without_query(response.url))


_AGAIN = "the received bytes were not kept; run it again, or pass another --url"


def _receive(response: Response, state: _State, file: IO[bytes], on_bytes: OnBytes, most: int) -> None:
    done = _size(file)
    _check_size(state, max(done, state.total or 0), most)
    try:
        with paced(response.socket, WINDOW, lambda: done, LEAST, "the file"):
            while chunk := _read(response, state.address, file):
                done += len(chunk)
                _check_size(state, done, most)  # whatever length the server announced
                file.write(chunk)
                on_bytes(done, state.total)
    except TooSlowError as e:
        file.flush()
        raise BrokenOffError(f"{state.address} is too slow after {done:,} bytes: {e}", again=False) from e
    file.flush()
    if state.total is not None and done != state.total:
        raise BrokenOffError(f"{state.address} broke off after {done:,} of {state.total:,} bytes")


def _check_size(state: _State, size: int, most: int) -> None:
    if size > most:
        raise FetchError(
            f"{state.address} sends more than {most:,} bytes, the largest size of a file; it was not kept: check the "
            "address, or raise --max-size"
        )


def _check_content(file: IO[bytes], address: str) -> None:
    file.seek(0)
    head = file.read(512)
    if not head or PAGE.match(head):
        found = "a web page" if head else "nothing"
        raise FetchError(f"{address} sent {found} instead of a checkpoint; it was not kept: check the address")


def _read(response: Response, address: str, file: IO[bytes]) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as e:
        file.flush()
        raise BrokenOffError(f"{address} broke off after {_size(file):,} bytes: {_reason(e)}") from e


def _reason(error: BaseException) -> str:
    return one_line(str(getattr(error, "reason", None) or error)) or type(error).__name__
