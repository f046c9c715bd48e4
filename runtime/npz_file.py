"""Read the arrays of a ``.npz`` file under limits: numpy's own reader allocates whatever a header claims.

The format is a ZIP archive with one ``.npy`` entry per array (numpy.lib.format, version 1.0): a header with type, order
and shape, then the values. Only plain numbers are read; object arrays, which are pickles, are not.
"""

from __future__ import annotations

import contextlib
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.files import format_size

__all__ = ["opened_npz"]

MOST = 2 << 30
"""Bytes of all arrays that are read from one file together."""

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
DAMAGE = (
    EOFError, MemoryError, NotImplementedError, OverflowError, RecursionError, RuntimeError, SyntaxError, struct.error,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What zipfile, zlib and the parser of numpy's headers raise for damaged files."""


@contextlib.contextmanager
def opened_npz(path: Path, *, most: int = MOST) -> Iterator[Callable[..., Array]]:
    """Open a file, and yield the function ``array(name, most=...)`` that reads one array.

    Args:
        path: an existing file.
        most: bytes of all arrays that are read; more are refused before they are allocated.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no ``.npz``, is damaged, lacks an array, or breaks a limit. The function raises it too.
    """
    left = most

    def array(name: str, most: int = most) -> Array:
        nonlocal left
        found = _array(archive, f"{name}.npy", min(most, left))
        left -= found.nbytes
        return found

    try:
        with zipfile.ZipFile(path) as archive:
            yield array
    except DAMAGE as e:
        raise ValueError(str(e) or type(e).__name__) from e


def _array(archive: zipfile.ZipFile, name: str, left: int) -> Array:
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"it has no {name}") from None
    if entry.file_size > left:
        raise ValueError(f"{name} has {format_size(entry.file_size)}, and {format_size(left)} are left of the limit")
    if entry.compress_type not in METHODS:
        raise ValueError(f"{name} is compressed by another method than numpy's")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{name} is not in version 1.0 of numpy's format, whose header is short")
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {dtype} and not numbers")
        count, stored = math.prod(shape), entry.file_size - file.tell()
        if min(shape, default=0) < 0 or count * dtype.itemsize != stored:
            raise ValueError(f"{name} claims to be {dtype} {shape}, but has {stored:,} bytes")
        values = np.frombuffer(
            bytearray(file.read(stored)), dtype
        )  # a bytearray, because arrays of bytes are read-only
    return values.reshape(shape, order="F" if by_column else "C")
