"""The tags of a TIFF file (TIFF 6.0, BigTIFF); most cameras' RAW formats are variants of it, and EXIF is one."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

__all__ = [
    "ASCII",
    "BYTE",
    "LONG",
    "RATIONAL",
    "SHORT",
    "SRATIONAL",
    "Tag",
    "count_directories",
    "first_directory",
    "numbers_of",
    "pixels_and_bytes",
    "tiff_tags",
    "with_subdirectories",
]

Tag = tuple[int, int, bytes]
"""The number of the type, the number of values, and their bytes in little-endian order."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
"""TIFF type -> bytes per value."""
BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL, LONG8 = 1, 2, 3, 4, 5, 10, 16
INTEGERS = {SHORT: "<u2", LONG: "<u4", LONG8: "<u8"}
ORDERS = {b"II": "<", b"MM": ">"}

MAX_TAGS, MAX_TAG_BYTES = 4096, 1 << 20  # per directory, per tag: a camera's file stays below
WIDTH, HEIGHT, STRIPS, TILES, SUBDIRECTORIES = 256, 257, 273, 324, 330


def tiff_tags(data: bytes) -> dict[int, Tag]:
    """Return the tags of a TIFF's first directory, completed from its subdirectories; empty if it is not a TIFF.

    Damaged entries are skipped: the tags are optional, and the image itself is not read here.
    """
    tags: dict[int, Tag] = {}
    for directory in with_subdirectories(data):
        tags = {**directory, **tags}
    return tags


def pixels_and_bytes(data: bytes) -> tuple[int, int]:
    """Return the number of pixels that the largest image of a TIFF declares, and the number of its bytes present.

    (0, 0) where the numbers cannot be determined.
    """
    largest = (0, 0)
    for tags in with_subdirectories(data):
        sides = [numbers_of(tags.get(number)) for number in (WIDTH, HEIGHT)]
        starts = numbers_of(tags.get(STRIPS)) or numbers_of(tags.get(TILES))
        counts = numbers_of(tags.get(STRIPS + 6)) or numbers_of(tags.get(TILES + 1))
        if all(sides) and starts and counts:
            present = sum(max(0, min(s + c, len(data)) - s) for s, c in zip(starts, counts, strict=False))
            largest = max(largest, (sides[0][0] * sides[1][0], present))
    return largest


def first_directory(data: bytes) -> dict[int, Tag]:
    """Return the tags of a TIFF's first directory; empty if it is not a TIFF."""
    started = _start(data)
    return {} if started is None else dict(_entries(data, *started))


def count_directories(data: bytes, most: int) -> int:
    """Return the number of directories in the chain of a TIFF, which are its pages, counted up to ``most``."""
    started = _start(data)
    if started is None:
        return 0
    layout, offset = started
    seen: set[int] = set()
    while len(seen) < most and offset and offset not in seen and offset + layout.head <= len(data):
        seen.add(offset)
        offset = layout.offset(data, offset + layout.head + layout.entry * layout.count(data, offset))
    return len(seen)


def _start(data: bytes) -> tuple[_Layout, int] | None:
    """Return the layout of a TIFF, and where its first directory lies; None if it is not a TIFF."""
    order = ORDERS.get(data[:2])
    if order is None or len(data) < 8:
        return None
    big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    layout = _Layout(order, big)
    return layout, layout.offset(data, 8 if big else 4)


def numbers_of(tag: Tag | None) -> list[int]:
    """Return the values of a tag of integers; empty for any other tag."""
    if tag is None or tag[0] not in INTEGERS:
        return []
    numbers: list[int] = np.frombuffer(tag[2], INTEGERS[tag[0]]).tolist()
    return numbers


class _Layout:
    """Where the fields of a directory are: ``head`` bytes for the number of entries, ``entry`` bytes for each."""

    def __init__(self, order: str, big: bool) -> None:
        self.order = order
        self.head, self.entry = (8, 20) if big else (2, 12)
        self._count, self._offset = (f"{order}Q", f"{order}Q") if big else (f"{order}H", f"{order}I")
        self.fields = f"{order}HHQ" if big else f"{order}HHI"
        self.inline = 8 if big else 4

    def count(self, data: bytes, position: int) -> int:
        return min(_number(self._count, data, position), MAX_TAGS)

    def offset(self, data: bytes, position: int) -> int:
        return _number(self._offset, data, position)


def _number(kind: str, data: bytes, position: int) -> int:
    """Return an integer of the file; 0 beyond its end."""
    if position + struct.calcsize(kind) > len(data):
        return 0
    return int(struct.unpack_from(kind, data, position)[0])


def with_subdirectories(data: bytes) -> list[dict[int, Tag]]:
    """Return the tags of a TIFF's first directory and of its subdirectories; empty if it is not a TIFF."""
    started = _start(data)
    if started is None:
        return []
    layout, offset = started
    first = dict(_entries(data, layout, offset))
    below = numbers_of(first.get(SUBDIRECTORIES))[:16]
    return [first, *(dict(_entries(data, layout, offset)) for offset in below)]


def _entries(data: bytes, layout: _Layout, offset: int) -> Iterator[tuple[int, Tag]]:
    """Yield the tags of a directory, whose values together are no longer than the file: those of a real one do not
    overlap, and a few bytes for each of many tags could name the same megabyte."""
    left = len(data)
    for i in range(layout.count(data, offset)):
        entry = offset + layout.head + layout.entry * i
        if entry + layout.entry > len(data):
            return
        number, kind, length = struct.unpack_from(layout.fields, data, entry)
        size = SIZES.get(kind, 0) * length
        if not 0 < size <= min(MAX_TAG_BYTES, left):
            continue
        left -= size
        field = entry + layout.entry - layout.inline
        start = field if size <= layout.inline else layout.offset(data, field)
        values = data[start : start + size]
        if len(values) == size:
            yield number, (kind, length, values if layout.order == "<" else _swapped(values, kind))


def _swapped(values: bytes, kind: int) -> bytes:
    width = SIZES[kind] if kind not in (RATIONAL, SRATIONAL) else 4  # two numbers of 4 bytes
    return values if width == 1 else np.frombuffer(values, f">u{width}").astype(f"<u{width}").tobytes()
