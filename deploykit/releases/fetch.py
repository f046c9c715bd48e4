"""Released checkpoints from their authors: downloaded, continued, checked and written down. Nothing is executed."""

from __future__ import annotations

import hashlib
import json
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from deploykit.errors import CheckpointError, FetchError, OutputError, UsageError, writing
from deploykit.releases.download import OnBytes, Partial, download
from deploykit.releases.table import CIRCULATING, RELEASED, Release, released_file
from deploykit.runtime.files import write_whole

__all__ = ["RELEASED", "Fetched", "Release", "fetch", "record_path"]

Checked = Literal["publisher", "given", "nothing"]


@dataclass(frozen=True)
class Fetched:
    """A file that is there whole.

    Attributes:
        path: where it is.
        size: in bytes.
        sha256: of the whole file, in hexadecimal.
        url: the address that was asked.
        final: the address that it came from, after redirects and without the query, which signs and expires.
        checked: whose SHA-256 it was compared with: the publisher's, one that was given, or nobody's.
        licence: by whom it was published, and under which licence.
        was_there: nothing was downloaded, because it was there already.
        note: what is known of files of this name, a sentence, or nothing.
    """

    path: Path
    size: int
    sha256: str
    url: str
    final: str
    checked: Checked
    licence: str
    was_there: bool = False
    note: str = ""


def record_path(path: Path) -> Path:
    """Where the record of a fetched file lies: ``yolov7.pt.source.json`` beside ``yolov7.pt``."""
    return path.with_name(f"{path.name}.source.json")


def fetch(
    name: str,
    *,
    out: str | Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    force: bool = False,
    on_bytes: OnBytes = lambda done, total: None,
    look: Callable[[Path], None] = lambda path: None,
) -> Fetched:
    """Download a released checkpoint, or say that it is there already.

    A download that broke off is continued by the next call. A record of where the file came from is written beside it.

    Args:
        name: as in :data:`RELEASED`; an underscore is accepted for a hyphen.
        out: the file; None: its released name, in the current folder.
        url: a mirror (``https``, ``http``).
        sha256: what the file must hash to, 64 hexadecimal digits.
        force: download it even if it is there, and replace a file that is not known to be it.
        on_bytes: told how many bytes have arrived, and of how many (None: the server does not say).
        look: looks at the file before it gets its name; a CheckpointError that it raises refuses the file.

    Raises:
        NotFoundError: no weights of that name were released.
        UsageError: ``url`` or ``sha256`` is none.
        FetchError: the server cannot be reached, or the file is not whole, or has another hash.
        CheckpointError: ``look`` refused it.
        OutputError: the file cannot be written, or another one has its place.
    """
    release = released_file(name)
    address = url or release.url
    parts = _split(address)
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
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        got = _downloaded(release, path, address, expected, on_bytes, look)
    write_whole(record_path(path), json.dumps(_record(name, got), indent=2).encode() + b"\n")
    return _noted(name, got)


def _downloaded(
    release: Release,
    path: Path,
    address: str,
    expected: tuple[str | None, Checked],
    on_bytes: OnBytes,
    look: Callable[[Path], None],
) -> Fetched:
    partial = Partial(path)
    with partial.held() as file:
        try:
            arrived = download(address, partial, file, on_bytes)
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
            raise type(e)(f"{address} arrived whole and was not kept: {reason}") from e
        except KeyboardInterrupt:
            raise KeyboardInterrupt(partial.what_stays(address, file)) from None
        except (OSError, OutputError):  # a full disk is no place to leave the half of a file
            partial.drop()
            raise
        record_path(path).unlink(missing_ok=True)  # that of the file which is replaced now
        partial.become(path, file)
    return got


def _already_there(
    name: str, release: Release, path: Path, address: str, expected: tuple[str | None, Checked]
) -> Fetched:
    """The file at ``path``, if its record says that it came whole from ``address``.

    Raises:
        OutputError: there is no such record, or the file has changed since.
    """
    advice = "choose another --out, or pass --force to download it again in its place"
    record = _read_record(record_path(path))
    if record is None:
        raise OutputError(f"{path} exists, and no {record_path(path).name} says where it came from: {advice}")
    if record.get("asked") != address:
        raise OutputError(f"{path} exists and came from {record.get('asked')}, not from {address}: {advice}")
    size, digest = path.stat().st_size, _sha256(path)
    if (size, digest) != (record.get("size"), record.get("sha256")):
        raise OutputError(f"{path} exists and is not what {record_path(path).name} says it was: {advice}")
    final = str(record.get("final", ""))
    got = Fetched(path, size, digest, address, final, _checked(expected), release.licence, was_there=True)
    wrong = _wrong_digest(got, expected[0])
    if wrong:
        raise FetchError(f"{path} {wrong}: pass --force to download it again in its place")
    return _noted(name, got)


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
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
    """Add what is known of a name that several files go by."""
    known = CIRCULATING.get(name.replace("_", "-"))
    if known is None:
        return got
    both = " and ".join(f"{size:,} bytes with SHA-256 {digest}..." for size, digest in known)
    one = any(got.size == size and got.sha256.startswith(digest) for size, digest in known)
    which = "one" if one else "neither"
    note = f"it is {which} of the two files that circulate under this name ({both}); which is right is not known here"
    return replace(got, note=note)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _split(address: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(address)
        fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and address.isascii()
    except ValueError:  # an unclosed bracket, or a port that no machine has
        fits = False
    if not fits:
        raise UsageError(f"--url must be an http or https address, in ASCII, got {address}")
    return parts
