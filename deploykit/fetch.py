"""Download released checkpoints from their authors. Nothing is executed, and nothing half-done stays behind."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploykit import __version__
from deploykit.errors import FetchError, NotFoundError, OutputError, UsageError, writing

__all__ = ["RELEASED", "Fetched", "Release", "fetch"]

CHUNK = 1 << 20
TIMEOUT = 20.0  # seconds without a byte


@dataclass(frozen=True)
class Release:
    """Where a checkpoint was published, and under which licence."""

    url: str
    licence: str


_YOLOV7 = "https://github.com/WongKinYiu/yolov7/releases/download/v0.1/"

RELEASED: dict[str, Release] = {
    name: Release(f"{_YOLOV7}{name}.pt", "published by the YOLOv7 authors under GPL-3.0")
    for name in (
        "yolov7-tiny", "yolov7", "yolov7x", "yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e", "yolov7-w6-pose",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Fetched:
    """A file that arrived whole; ``size`` in bytes."""

    path: Path
    size: int
    sha256: str
    url: str
    licence: str


def fetch(
    name: str,
    *,
    out: str | Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    on_bytes: Callable[[int, int | None], None] = lambda done, total: None,
) -> Fetched:
    """Download the released checkpoint of a model.

    Args:
        name: as in :data:`RELEASED`; an underscore is accepted for a hyphen.
        out: the file; None: its released name, in the current folder.
        url: a mirror (``https``, ``http``).
        sha256: what the file must hash to, 64 hexadecimal digits.
        on_bytes: told how many bytes have arrived, and of how many (None: the server does not say).

    Raises:
        NotFoundError: no weights of that model were released.
        FetchError: the server cannot be reached, or the file is not whole, or has another hash.
        OutputError: the file cannot be written.
    """
    release = RELEASED.get(name.replace("_", "-"))
    if release is None:
        raise NotFoundError(f"no released weights of {name!r} are known; there are {', '.join(RELEASED)}")
    address = url or release.url
    parts = _split(address)
    if sha256 is not None and len(sha256) != 64:
        raise UsageError(f"a SHA-256 has 64 hexadecimal digits, got {len(sha256)}")
    path = Path(out or Path(parts.path).name or f"{name}.pt")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name the file in it with --out")
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            size, digest = _download(address, partial, on_bytes)
            if sha256 is not None and digest != sha256.lower():
                raise FetchError(f"{address} has SHA-256 {digest}, expected {sha256.lower()}: the file was not kept")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return Fetched(path, size, digest, address, release.licence)


def _split(address: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(address)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and address.isascii()
    except ValueError:  # an unclosed bracket, or a port that no machine has
        fits = False
    if not fits:
        raise UsageError(f"--url must be an http or https address, in ASCII, got {address}")
    return parts


def _download(address: str, partial: Path, on_bytes: Callable[[int, int | None], None]) -> tuple[int, str]:
    digest, done = hashlib.sha256(), 0
    with partial.open("wb") as file, _opened(address) as response:
        total = response.length  # None in a response of chunks
        while chunk := _read(response, address):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done, total)
    if total is not None and done != total:
        raise FetchError(f"{address} broke off after {done:,} of {total:,} bytes: fetch it again")
    return done, digest.hexdigest()


def _opened(address: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(address, headers={"User-Agent": f"deploykit/{__version__}"})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        e.close()
        answer = _plain(f"{e.code} {e.reason}")
        raise FetchError(f"{address} answered {answer}: check the address, or pass another --url") from e
    except (OSError, http.client.HTTPException, OverflowError, ValueError) as e:  # the last two: no such host or port
        raise _unreachable(address, e) from e
    if not isinstance(response, http.client.HTTPResponse):
        raise FetchError(f"{address} led to {response.url}, which is neither http nor https: pass another --url")
    return response


def _read(response: http.client.HTTPResponse, address: str) -> bytes:
    try:
        return response.read(CHUNK)
    except http.client.IncompleteRead as e:
        raise FetchError(f"{address} broke off: fetch it again") from e
    except OSError as e:
        raise _unreachable(address, e) from e


def _unreachable(address: str, error: Exception) -> FetchError:
    reason = _plain(str(getattr(error, "reason", None) or error)) or type(error).__name__
    return FetchError(f"cannot fetch {address}: {reason}; check the network, or pass a mirror with --url")


def _plain(text: str) -> str:
    """One line, without the control characters that a server may put into what it says."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
