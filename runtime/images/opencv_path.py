"""Paths for OpenCV's video functions, which take only text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from deploykit.atomic import temporary_folder

__all__ = ["opencv_path"]


@contextlib.contextmanager
def opencv_path(path: Path) -> Iterator[str]:
    """Yield a name by which OpenCV can open an existing video file while the context lasts.

    A name whose bytes are not UTF-8 (Latin-1, for example) crashes the process in OpenCV: such a file is opened through
    a link.
    """
    name = str(path)
    if _is_text(name):
        yield name
        return
    with temporary_folder() as folder:
        link = folder / f"video{path.suffix if _is_text(path.suffix) else ''}"
        link.symlink_to(path.absolute())
        yield str(link)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
