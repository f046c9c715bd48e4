"""Files of the cache folder: whole and undamaged, or as if they were not there, and not more of them than a limit.

A file of :func:`keep_bytes` begins with the SHA-256 of the rest, because some libraries take damaged bytes for good
ones or crash over them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from deploykit.atomic import write_atomic
from deploykit.errors import DeployError

__all__ = ["MOST", "keep_bytes", "keep_file", "kept_bytes"]

HEAD = b"deploykit cache 1\n"
DIGEST = hashlib.sha256().digest_size
MOST = 1 << 30  # bytes of all files in each folder of the cache


def kept_bytes(place: Path) -> bytes:
    """Return what was kept in a file; empty bytes if there is none, or if it is damaged."""
    try:
        data = place.read_bytes()
    except OSError:
        return b""
    digest, content = data[len(HEAD) : len(HEAD) + DIGEST], data[len(HEAD) + DIGEST :]
    if not data.startswith(HEAD) or hashlib.sha256(content).digest() != digest:
        return b""
    with contextlib.suppress(OSError):
        os.utime(place)  # it was used last
    return content


def keep_bytes(place: Path, content: bytes) -> None:
    """Keep bytes for :func:`kept_bytes`, see :func:`keep_file`."""
    keep_file(place, HEAD + hashlib.sha256(content).digest() + content)


def keep_file(place: Path, data: bytes) -> None:
    """Write a file of the cache folder, and remove those beside it that were not used for longest, if there are too
    many bytes.

    Whoever reads one sets its time (``os.utime``). Nothing is kept where the file cannot be written, or where it would
    be half of what there may be.
    """
    if len(data) > MOST // 2:
        return
    with contextlib.suppress(DeployError):
        write_atomic(place, data, durable=False)
        left = MOST
        for used, file in sorted(_files(place.parent), key=lambda each: -each[0].st_mtime_ns):
            left -= used.st_size
            if left < 0:
                with contextlib.suppress(OSError):  # it is open, on Windows
                    file.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[os.stat_result, Path]]:
    """Yield the files of a folder of the cache; hidden ones are what somebody writes."""
    for file in folder.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            yield file.stat(), file
