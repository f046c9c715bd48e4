"""Files that must exist before they are read, files that are written whole or not at all, and sizes in words."""

from __future__ import annotations

import contextlib
import difflib
import os
from pathlib import Path

from deploykit.errors import ArtefactError, NotFoundError, writing

__all__ = [
    "cache_folder",
    "close_matches",
    "existing_file",
    "exists",
    "is_folder",
    "megabytes",
    "partial_name",
    "write_whole",
]


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """``path`` as a Path, if it is a file; ``what`` (``a model``, ``a spec``) is the word for it in the message.

    Raises:
        NotFoundError: there is no such file; the message names the neighbours that look like it.
        ArtefactError: it is a folder.
    """
    file = Path(path).expanduser()
    if is_folder(file):
        raise ArtefactError(f"expected {what}, but {file} is a folder: name a file in it")
    if not exists(file):
        raise NotFoundError(f"{what} was expected at {file}, but there is no such file{close_matches(file)}")
    return file


def exists(path: Path) -> bool:
    """Whether there is such a file or folder, as far as the system lets us see: no permission counts as no."""
    try:
        return path.exists()
    except OSError:  # Path.exists passes on what is neither yes nor no, such as a name that is too long
        return False


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder, as far as the system lets us see."""
    try:
        return path.is_dir()
    except OSError:
        return False


def close_matches(path: Path) -> str:
    """``; did you mean a.onnx, b.onnx?`` with the neighbours whose names are near, or nothing."""
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return "" if exists(path.parent) else f", nor the folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/deploykit``, or ``~/.cache/deploykit``: what is worth keeping from one run to the next.

    What lies there may be deleted at any time. The folder need not exist.
    """
    place = os.environ.get("XDG_CACHE_HOME")
    return (Path(place) if place else Path.home() / ".cache") / "deploykit"


def partial_name(path: Path) -> Path:
    """The name that ``path`` has while it is being written: beside it, and with the same suffix."""
    return path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name beside ``path``, then rename: nobody ever sees half a file.

    Raises:
        OutputError: the place is not writable or full; what stood at ``path`` before is untouched.
    """
    partial = partial_name(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def megabytes(size: int) -> str:
    """``321.5 MB``, ``12.3 kB``, ``24 bytes``; 1 kB is 1000 bytes."""
    if size >= 1_000_000:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.1f} kB" if size >= 1000 else f"{size} bytes"
