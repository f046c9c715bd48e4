"""Existing files, the cache folder, and file sizes as text."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from deploykit.errors import ArtefactError, NotFoundError

__all__ = [
    "cache_folder",
    "existing_file",
    "exists",
    "format_size",
    "is_folder",
    "similar_names",
]


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return ``path`` as a Path if it is a regular file; ``what`` (``a model``, ``a spec``) names it in the message.

    Raises:
        NotFoundError: the file does not exist; the message suggests neighbours with similar names.
        ArtefactError: the path is a folder, or a pipe or a device, which may have no end.
    """
    file = Path(path).expanduser()
    if is_folder(file):
        raise ArtefactError(f"expected {what}, but {file} is a folder: give the path of a file in it")
    if not exists(file):
        raise NotFoundError(f"{what} was expected at {file}, but there is no such file{similar_names(file)}")
    if not file.is_file():
        raise ArtefactError(f"expected {what}, but {file} is a pipe or a device: copy its content into a file first")
    return file


def exists(path: Path) -> bool:
    """Return whether a file or folder exists; a path that may not be inspected counts as missing."""
    try:
        return path.exists()
    except OSError:  # Path.exists raises if it cannot decide, for example for a name that is too long
        return False


def is_folder(path: Path) -> bool:
    """Return whether ``path`` is a folder; a path that may not be inspected counts as none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def similar_names(path: Path) -> str:
    """Return ``; did you mean a.onnx, b.onnx?`` with neighbours of similar names, or an empty string."""
    try:
        names = [p.name for p in path.parent.iterdir()]
    except OSError:
        return "" if exists(path.parent) else f"; the folder {path.parent} does not exist either"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""


def cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/deploykit`` or ``~/.cache/deploykit``: the folder of data that is kept between runs.

    Its content may be deleted at any time. The folder may not exist yet.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deploykit"


def format_size(size: int) -> str:
    """Format a size in bytes: ``321.5 MB``, ``12.3 kB``, ``24 bytes``. 1 kB is 1000 bytes."""
    if size >= 1_000_000:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.1f} kB" if size >= 1000 else f"{size} bytes"
