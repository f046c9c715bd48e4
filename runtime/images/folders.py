"""The images of a folder, and what else it holds."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from deploykit.errors import ImageError
from deploykit.runtime.files import exists, is_folder
from deploykit.runtime.images.reading import RAW_SUFFIXES

__all__ = ["IMAGE_SUFFIXES", "VIDEO_SUFFIXES", "list_images", "natural_order", "passed_over"]

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
VIDEO_SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
}  # fmt: skip

NAMED = 5  # names of each kind of what is passed over


def natural_order(path: Path) -> tuple[list[list[str | int]], str]:
    """Return the key that sorts paths by their names, with numbers in them as numbers: 2 before 10."""
    parts = (re.split("([0-9]+)", part) for part in path.parts)
    return [[int(text) if i % 2 else text for i, text in enumerate(part)] for part in parts], str(path)


def list_images(folder: Path, *, raw: bool = False, recursive: bool = False) -> list[Path]:
    """Return the images of a folder in the order of their names; ``raw`` adds RAW files.

    ``recursive`` adds the images of its sub-folders, but for hidden ones and those behind links.

    Raises:
        ImageError: the folder cannot be listed, or holds no image.
    """
    try:
        files = sorted(p for p in _entries(folder, recursive) if p.is_file())
    except OSError as e:
        raise ImageError(f"cannot list the folder {folder}: {e.strerror or e}") from e
    suffixes = IMAGE_SUFFIXES | RAW_SUFFIXES if raw else IMAGE_SUFFIXES
    images = [p for p in files if p.suffix.lower() in suffixes]
    if not images:
        found = f"only {len(files)} other file{'s' * (len(files) != 1)}" if files else "no file at all"
        raise ImageError(f"the folder {folder} holds no image (.jpg, .png, .webp, ...), {found}")
    return images


def _entries(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yield what a folder holds; with ``recursive`` all in it, but for hidden sub-folders.

    Raises:
        OSError: the folder cannot be listed.
    """
    if not recursive:
        yield from folder.iterdir()
        return

    def refuse(error: OSError) -> None:
        raise error

    for place, below, names in os.walk(folder, onerror=refuse):
        below[:] = [name for name in below if not name.startswith(".")]
        yield from (Path(place, name) for name in names)


def passed_over(folder: Path, images: Collection[object], *, recursive: bool = False) -> str:
    """Return what a folder holds besides ``images``, as words with counts and names; empty if there is nothing else.

    ``recursive``: what its sub-folders hold too. Hidden files are not told, unless their names are those of images.
    """
    kinds: dict[str, list[str]] = {
        "sub-folder": [], "video": [], "RAW file": [], "broken link": [], "unreadable file": [], "other file": []
    }  # fmt: skip
    taken = set(map(str, images))
    try:
        left = sorted(path for path in _entries(folder, recursive) if str(path) not in taken)
    except OSError:
        return ""
    for path in left:
        kinds[_kind_passed_over(path)].append(str(path.relative_to(folder)))
    told = ((kind, [name for name in names if not Path(name).name.startswith(".")]) for kind, names in kinds.items())
    return ", ".join(
        f"{len(names)} {kind}{'s' * (len(names) > 1)} ({', '.join(names[:NAMED])}"
        f"{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''})"
        for kind, names in told
        if names
    )


def _kind_passed_over(path: Path) -> str:
    if is_folder(path):
        return "sub-folder"
    if not exists(path):
        return "broken link" if path.is_symlink() else "unreadable file"
    suffix = path.suffix.lower()
    return "video" if suffix in VIDEO_SUFFIXES else "RAW file" if suffix in RAW_SUFFIXES else "other file"
