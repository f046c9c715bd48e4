"""Images and videos at web addresses, fetched under limits of size and time."""

from __future__ import annotations

import base64
import http.client
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection
from typing import IO

from deploykit.connection import BrokenOffError, Redirects, Response, TooSlowError, one_line, opener, paced
from deploykit.errors import DeployError, FetchError, ImageError, NotFoundError
from deploykit.runtime.files import format_size
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.content import Content, content_of
from deploykit.version import __version__

__all__ = ["content_at", "fetch_image", "fetch_video", "is_finished"]

LARGEST_IMAGE, LARGEST_VIDEO, LARGEST_PLAYLIST = 1 << 28, 4 << 30, 1 << 20  # bytes
LONGEST_IMAGE, LONGEST_VIDEO = 120.0, 3600.0  # seconds
QUIET = 10.0  # seconds without a byte
WINDOW, LEAST = 30.0, 10_000  # seconds in which the headers, and then so many bytes, must come
HEAD = 512  # bytes that tell what something is
CHUNK = 1 << 18


def fetch_image(address: Address, *, hosts: Collection[str] | None = None, most: int = LARGEST_IMAGE) -> bytes:
    """Return the bytes of an encoded image, of which there are at most ``most``.

    ``hosts``: the only hosts that the address may redirect to; None: any.

    Raises:
        NotFoundError: there is nothing at the address.
        FetchError: the server cannot be reached, refuses, breaks off, is too slow or sends too much.
        ImageError: the answer is a web page, a video or a stream.
    """
    parts: list[bytes] = []
    with _opened(address, hosts) as response:
        if _is_multipart(response):
            raise ImageError(_not_an_image(address, "stream"))
        _receive(response, address, parts.append, min(most, LARGEST_IMAGE), LONGEST_IMAGE)
    data = b"".join(parts)
    content = content_of(data[:HEAD])
    if content in ("page", "video", "playlist"):
        raise ImageError(_not_an_image(address, content))
    return data


def fetch_video(address: Address, file: IO[bytes]) -> None:
    """Download a video into an open file; the errors are those of :func:`fetch_image`."""
    with _opened(address) as response:
        _receive(response, address, file.write, LARGEST_VIDEO, LONGEST_VIDEO)


def content_at(address: Address) -> Content:
    """Return what the first bytes at a web address are; the errors are those of :func:`fetch_image`."""
    with _opened(address) as response:
        if _is_multipart(response):
            return "stream"
        head = bytearray()
        _receive(response, address, head.extend, LARGEST_VIDEO, QUIET, enough=lambda: len(head) >= HEAD)
    content = content_of(bytes(head))
    if content == "page":
        raise ImageError(_not_an_image(address, content))
    return content


def is_finished(address: Address) -> bool:
    """Return whether an HLS playlist, or the first one that it names, lists a stream that has ended."""
    for _ in range(2):
        parts: list[bytes] = []
        try:
            with _opened(address) as response:
                _receive(response, address, parts.append, LARGEST_PLAYLIST, QUIET)
            lines = [line.strip() for line in b"".join(parts).decode(errors="replace").splitlines()]
            names = [line for line in lines if line and not line.startswith("#")]
            if not any(line.startswith("#EXT-X-STREAM-INF") for line in lines) or not names:
                return "#EXT-X-ENDLIST" in lines
            address = Address(urllib.parse.urljoin(address.text, names[0]))
        except (DeployError, ValueError):
            return False
    return False


def _not_an_image(address: Address, content: Content) -> str:
    told = "a web page" if content == "page" else f"a {content}"
    advice = "check the address" if content == "page" else "iterate over model.stream(address)"
    return f"an image was expected at {address.name}, but it is {told}: {advice}"


def _is_multipart(response: Response) -> bool:
    """Return whether an answer is images that replace each other, as cameras send them."""
    return response.headers.get_content_type() == "multipart/x-mixed-replace"


def _opened(address: Address, hosts: Collection[str] | None = None) -> Response:
    try:
        response = opener(Redirects(hosts), WINDOW).open(_request(address), timeout=QUIET)
    except urllib.error.HTTPError as e:
        e.close()
        answer = one_line(f"{e.code} {e.reason}")
        if e.code in (404, 410):
            raise NotFoundError(f"nothing is at {address.name} ({answer}): check the address") from None
        if 300 <= e.code < 400:  # urllib refuses some by itself, with the whole address in its message
            raise FetchError(f"{address.name} redirects to what is neither http nor https: give the address") from None
        advice = "give https://user:password@host/..." if e.code in (401, 403) else "check the address, or try it later"
        raise FetchError(f"{address.name} answered {answer}: {advice}") from None
    except BrokenOffError as e:  # a redirect that is not followed
        raise FetchError(f"{e}: give the address itself") from None
    except (OSError, http.client.HTTPException, OverflowError, ValueError) as e:
        raise FetchError(f"cannot fetch {address.name}: {_reason(e)}: check the address and the network") from None
    assert isinstance(response, Response)
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if response.status != 200 or encoding != "identity":
        response.close()
        told = f"compressed ({one_line(encoding)})" if response.status == 200 else f"with status {response.status}"
        raise FetchError(f"{address.name} answered {told}, where plain content with status 200 was expected")
    return response


def _request(address: Address) -> urllib.request.Request:
    """Return the request of an address, whose user and password go to its own host only."""
    parts = urllib.parse.urlsplit(address.text)
    path = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    plain = urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], path, query, ""))
    request = urllib.request.Request(
        plain, headers={"User-Agent": f"deploykit/{__version__}", "Accept-Encoding": "identity"}
    )
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(pair.encode()).decode()}")
    return request


def _receive(
    response: Response, address: Address, take: Callable[[bytes], object], most: int, seconds: float,
    enough: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Give the content to ``take`` part by part, until its end or until it is ``enough``."""
    size, declared, end = 0, response.length, time.monotonic() + seconds
    try:
        with paced(response.socket, WINDOW, lambda: size, LEAST, "the content"):
            while not enough():
                if max(size, declared or 0) > most:
                    limit = format_size(most)
                    raise FetchError(f"{address.name} sends more than {limit}, the most that is fetched: copy the file")
                part = response.read1(CHUNK)
                size += len(part)
                if not part:
                    break
                if time.monotonic() > end:
                    raise FetchError(f"{address.name} took longer than {seconds:g} s: copy the file first")
                take(part)
    except TooSlowError as e:
        raise FetchError(f"{address.name} is too slow after {size:,} bytes: {e}") from None
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise FetchError(f"{address.name} broke off after {size:,} bytes: {_reason(e)}: try it again") from None
    if declared is not None and size != declared and not enough():
        raise FetchError(f"{address.name} broke off after {size:,} of {declared:,} bytes: try it again")


def _reason(error: BaseException) -> str:
    return one_line(str(getattr(error, "reason", None) or error)) or type(error).__name__
