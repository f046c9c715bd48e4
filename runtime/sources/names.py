"""Sources by the names of files: patterns, lists of files, folders with their sub-folders."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import ImageError, NotFoundError
from deploykit.runtime.files import exists, similar_names
from deploykit.runtime.images.folders import IMAGE_SUFFIXES, VIDEO_SUFFIXES, natural_order
from deploykit.runtime.images.reading import RAW_SUFFIXES
from deploykit.runtime.sources.addresses import is_address

__all__ = ["LIST_SUFFIX", "LONGEST_LIST", "entries_in", "entries_of", "fixed_part", "is_pattern", "matches"]

LIST_SUFFIX = ".txt"
LONGEST_LIST = 1 << 26  # bytes
MAGIC = "*?["


def is_pattern(text: str) -> bool:
    """Return whether a name is a pattern: it has ``*``, ``?`` or ``[``, and no file has exactly this name."""
    return any(c in text for c in MAGIC) and not exists(Path(text))


def fixed_part(pattern: str) -> Path:
    """Return the folder before the first part of a pattern that is one."""
    parts = Path(pattern).parts
    count = next(i for i, part in enumerate(parts) if any(c in part for c in MAGIC))
    return Path(*parts[:count])


def matches(pattern: str) -> list[Path]:
    """Return the images and videos that match a pattern, in natural order; ``**`` stands for folders of any depth.

    RAW files are taken if the pattern ends with their suffix. Hidden files match only a pattern that says so.

    Raises:
        NotFoundError: nothing matches. ImageError: only other files do.
    """
    raw = {Path(pattern).suffix.lower()} & RAW_SUFFIXES
    found = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207  (Path.glob takes no absolute ones)
    files = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES | raw and file.is_file()]
    if not found:
        raise NotFoundError(f"no file matches the pattern {pattern}")
    if not files:
        count = f"{len(found)} file{'s' * (len(found) != 1)}"
        raise ImageError(f"the pattern {pattern} matches {count}, but no image (.jpg, .png, .webp, ...) and no video")
    return sorted(dict.fromkeys(files), key=natural_order)


def entries_of(file: Path) -> list[Path | str]:
    """Return the files (relative to the folder of the list) and addresses of a list: one per line, ``#`` comments.

    Raises:
        NotFoundError: the list or one of its files does not exist; the message has the line.
        ImageError: the list cannot be read, or is empty.
    """
    try:
        if not file.is_file():
            raise ImageError(f"a list of images must be a text file, but {file} is a pipe or a device")
        if file.stat().st_size > LONGEST_LIST:
            raise ImageError(f"the list {file} has more than {LONGEST_LIST:,} bytes: split it")
        text = file.read_bytes()
    except OSError as e:
        raise ImageError(f"cannot read the list {file}: {e.strerror or e}") from e
    return list(entries_in(text, str(file), file.parent))


def entries_in(data: bytes, name: str, folder: Path) -> Iterator[Path | str]:
    """Yield the entries of a list's bytes; ``name`` stands for the list in messages. The errors are those above."""
    count = 0
    for number, line in enumerate(os.fsdecode(data.removeprefix(b"\xef\xbb\xbf")).splitlines(), start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        count += 1
        if is_address(entry):
            yield entry
            continue
        path = folder / entry
        if "\0" in entry or not exists(path):
            raise NotFoundError(
                f"{name}, line {number}: an image or a video was expected at {path}, which does not exist"
                f"{'' if chr(0) in entry else similar_names(path)}"
            )
        if not path.is_file():
            raise ImageError(
                f"{name}, line {number}: a list names images, videos and addresses, but {path} is a folder"
            )
        yield path
    if not count:
        raise ImageError(f"the list {name} names no image: expected one path or address per line")
