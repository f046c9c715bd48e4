"""Download released checkpoints from their authors, verify them and record their source. Nothing is executed."""

from __future__ import annotations

import hashlib
import json
import logging
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from deploykit.atomic import check_replaceable, write_atomic
from deploykit.errors import CheckpointError, FetchError, OutputError, UsageError, os_errors_as_output_errors
from deploykit.releases.download import MOST, OnBytes, Partial, download
from deploykit.releases.table import CIRCULATING, RELEASED, Release, released_file
from deploykit.strict_json import JsonError, read_json

LOG = logging.getLogger(__name__)

__all__ = ["RELEASED", "Fetched", "Release", "fetch", "record_path"]

Checked = Literal["publisher", "given", "nothing"]


@dataclass(frozen=True)
class Fetched:
    """A complete file.

    Attributes:
        path: the file.
        size: its size in bytes.
        sha256: the SHA-256 of the whole file, in hexadecimal.
        url: the requested address.
        final: the address after redirects, without the query, whose signatures expire.
        checked: the source of the SHA-256 that it was compared with: ``publisher``, ``given`` by the caller, or
            ``nothing``.
        licence: who published it, and under which licence.
        already_there: nothing was downloaded, because the file existed already.
        note: a sentence about files of this name, or empty.
    """

    path: Path
    size: int
    sha256: str
    url: str
    final: str
    checked: Checked
    licence: str
    already_there: bool = False
    note: str = ""


def record_path(path: Path) -> Path:
    """Return the path of a fetched file's record: ``yolov7.pt.source.json`` beside ``yolov7.pt``."""
    return path.with_name(f"{path.name}.source.json")


def fetch(
    name: str,
    *,
    out: str | Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    force: bool = False,
    max_size: int = MOST,
    on_bytes: OnBytes = lambda done, total: None,
    look: Callable[[Path], None] = lambda path: None,
) -> Fetched:
    """Download a released checkpoint, or report that it exists already.

    The next call continues a download that broke off. A record of the file's source is written beside it.

    Args:
        name: a key of :data:`RELEASED`; an underscore is accepted for a hyphen.
        out: the file; None: its released name, in the current folder.
        url: a mirror (``https``, ``http``).
        sha256: the expected hash of the file, 64 hexadecimal digits.
        force: download even if the file exists, and replace a file that is not known to be this release.
        max_size: bytes of the file; a larger one is refused, whatever length the server announces.
        on_bytes: called with the number of received bytes and their total (None: the server does not report it).
        look: called with the file before it gets its name; if it raises a CheckpointError, the file is refused.

    Raises:
        NotFoundError: no released weights have this name.
        UsageError: ``url`` is not an http or https address, or ``sha256`` is not a SHA-256.
        FetchError: the server cannot be reached, or the file is incomplete or has another hash.
        CheckpointError: ``look`` refused the file.
        OutputError: the file cannot be written, or another file exists at its path.
    """
    release = released_file(name)
    address = url or release.url
    parts = _split(address)
    if max_size < 1:
        raise UsageError(f"the largest size of a file must be at least 1 byte, got {max_size}")
    if sha256 is not None and len(sha256) != 64:
        raise UsageError(f"a SHA-256 has 64 hexadecimal digits, got {len(sha256)}")
    path = Path(out or Path(parts.path).name or f"{name}.pt")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name the file in it with --out")
    expected: tuple[str | None, Checked] = (sha256, "given")
    if sha256 is None and release.sha256 is not None:
        expected = release.sha256, "publisher"
    if path.exists() and not force:
        return _already_there(name, release, path, address, expected)
    if release.notice:
        LOG.warning("%s: %s", name, release.notice)
    with os_errors_as_output_errors(path):
        check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        got = _downloaded(name, release, path, address, expected, on_bytes, look, max_size)
    return _noted(name, got)


def _downloaded(
    name: str,
    release: Release,
    path: Path,
    address: str,
    expected: tuple[str | None, Checked],
    on_bytes: OnBytes,
    look: Callable[[Path], None],
    most: int,
) -> Fetched:
    partial = Partial(path)
    with partial.held() as file:
        try:
            arrived = download(address, partial, file, on_bytes, most)
            digest = _sha256(partial.path)
            got = Fetched(path, arrived.size, digest, address, arrived.final, _checked(expected), release.licence)
            wrong = _wrong_digest(got, expected[0])
            if wrong:
                partial.drop()
                raise FetchError(f"{address} {wrong}: the file was not kept")
            look(partial.path)
        except CheckpointError as e:
            partial.drop()
            reason = str(e).removeprefix(f"{partial.path}: ")
            raise type(e)(f"{address} was downloaded but not kept: {reason}") from e
        except KeyboardInterrupt as e:
            raise type(e)(partial.describe_remainder(address, file)) from None
        except (OSError, OutputError):  # a partial file must not stay on a full disk
            partial.drop()
            raise
        _publish(partial, file, path, json.dumps(_record(name, got), indent=2).encode() + b"\n")
    return got


def _publish(partial: Partial, file: IO[bytes], path: Path, record: bytes) -> None:
    """Give a download its name, beside the record of its source.

    A new file's record comes first: of a file without one, the next call could not tell where it came from. A file
    that is replaced, as only ``force`` does, never lies beside the record of another one.
    """
    if path.exists():
        record_path(path).unlink(missing_ok=True)
        partial.become(path, file)
        write_atomic(record_path(path), record)
    else:
        write_atomic(record_path(path), record)
        partial.become(path, file)


def _already_there(
    name: str, release: Release, path: Path, address: str, expected: tuple[str | None, Checked]
) -> Fetched:
    """Return the existing file at ``path`` if its record says that it came complete from ``address``.

    Raises:
        OutputError: there is no such record, or the file has changed since.
        FetchError: the file has another hash than expected.
    """
    advice = "choose another --out, or pass --force to download it again in its place"
    record = _read_record(record_path(path))
    if record is None:
        raise OutputError(f"{path} exists, but no {record_path(path).name} says where it came from: {advice}")
    if record.get("asked") != address:
        raise OutputError(f"{path} exists, but it came from {record.get('asked')}, not from {address}: {advice}")
    size, digest = path.stat().st_size, _sha256(path)
    if (size, digest) != (record.get("size"), record.get("sha256")):
        raise OutputError(f"{path} exists, but it does not match {record_path(path).name}: {advice}")
    final = str(record.get("final", ""))
    got = Fetched(path, size, digest, address, final, _checked(expected), release.licence, already_there=True)
    wrong = _wrong_digest(got, expected[0])
    if wrong:
        raise FetchError(f"{path} {wrong}: pass --force to download it again in its place")
    return _noted(name, got)


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = read_json(path)
    except (OSError, JsonError):
        return None
    return record if isinstance(record, dict) else None


def _record(name: str, got: Fetched) -> dict[str, Any]:
    return {
        "name": name,
        "asked": got.url,
        "final": got.final,
        "size": got.size,
        "sha256": got.sha256,
        "sha256_compared_with": got.checked,
        "licence": got.licence,
    }


def _checked(expected: tuple[str | None, Checked]) -> Checked:
    return "nothing" if expected[0] is None else expected[1]


def _wrong_digest(got: Fetched, expected: str | None) -> str:
    if expected is None or got.sha256 == expected.lower():
        return ""
    return f"has SHA-256 {got.sha256}, expected {expected.lower()}"


def _noted(name: str, got: Fetched) -> Fetched:
    """Add a note if several files circulate under the name."""
    known = CIRCULATING.get(name.replace("_", "-"))
    if known is None:
        return got
    both = " and ".join(f"{size:,} bytes with SHA-256 {digest}..." for size, digest in known)
    one = any(got.size == size and got.sha256.startswith(digest) for size, digest in known)
    which = "one" if one else "neither"
    note = f"it is {which} of the two files that circulate under this name ({both}); the right one is unknown"
    return replace(got, note=note)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split(address: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(address)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and address.isascii()
    except ValueError:  # an unclosed bracket or an impossible port
        fits = False
    if not fits:
        raise UsageError(f"--url must be an http or https address, in ASCII, got {address}")
    return parts
