"""Lists of hashes as ``sha256sum`` writes and checks them, in the folders of packages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from deploykit.errors import ArtefactError

__all__ = ["SUMS", "read_sums", "text_of_sums"]

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\r\n\x00]+)")
MOST = 1 << 20  # bytes


def text_of_sums(digests: Mapping[str, str]) -> str:
    """Return the text of a list: a line for each path below its folder, with ``/`` between parts."""
    return "".join(f"{digest}  {path}\n" for path, digest in digests.items())


def read_sums(file: Path) -> dict[str, str]:
    """Return path below the folder of the list -> SHA-256.

    Raises:
        ArtefactError: the file cannot be read as such a list, or a path leads out of the folder.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST + 1)
        lines = data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ArtefactError(f"cannot read {file}: {e}") from e
    found = {}
    for line in lines:
        match = LINE.fullmatch(line)
        if match is None or len(data) > MOST:
            raise ArtefactError(
                f"expected a list of SHA-256 and paths as sha256sum writes it, got {line!r:.80} in {file}"
            )
        path = PurePosixPath(match[2])
        if path.is_absolute() or ".." in path.parts or "\\" in match[2]:
            raise ArtefactError(f"{file} names {match[2]!r:.80}, which does not lie below it")
        found[str(path)] = match[1]
    return found
