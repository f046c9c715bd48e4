"""Files of the cache folder that hold the bytes of another library: whole and undamaged, or as if they were not there.

A file begins with the SHA-256 of the rest, because some libraries take damaged bytes for good ones or crash over them.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from deploykit.atomic import write_atomic
from deploykit.errors import DeployError

__all__ = ["keep_bytes", "kept_bytes"]

HEAD = b"deploykit cache 1\n"
DIGEST = hashlib.sha256().digest_size


def kept_bytes(place: Path) -> bytes:
    """Return what was kept in a file; empty bytes if there is none, or if it is damaged."""
    try:
        data = place.read_bytes()
    except OSError:
        return b""
    digest, content = data[len(HEAD) : len(HEAD) + DIGEST], data[len(HEAD) + DIGEST :]
    whole = data.startswith(HEAD) and hashlib.sha256(content).digest() == digest
    return content if whole else b""


def keep_bytes(place: Path, content: bytes) -> None:
    """Keep bytes for :func:`kept_bytes`; where the file cannot be written, nothing is kept."""
    with contextlib.suppress(DeployError):
        write_atomic(place, HEAD + hashlib.sha256(content).digest() + content, durable=False)
