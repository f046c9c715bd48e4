"""The tags of a TIFF file (TIFF 6.0); most cameras' RAW formats are variants of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

__all__ = ["Tag", "pixels_and_bytes", "tiff_tags"]

Tag = tuple[int, int, bytes]
"""The number of the type, the number of values, and their bytes in little-endian order."""

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""TIFF type -> bytes per value."""
BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL = 1, 2, 3, 4, 5, 10
ORDERS = {b"II": "<", b"MM": ">"}

MAX_TAGS, MAX_TAG_BYTES = 4096, 1 << 20  # per directory, per tag: a camera's file stays below
WIDTH, HEIGHT, STRIPS, TILES, SUBDIRECTORIES = 256, 257, 273, 324, 330


def tiff_tags(data: bytes) -> dict[int, Tag]:
    """Return the tags of a TIFF's first directory, completed from its subdirectories; empty if it is not a TIFF.

    Damaged entries are skipped: the tags are optional, and the image itself is not read here.
    """
    tags: dict[int, Tag] = {}
    for directory in _directories(data):
        tags = {**directory, **tags}
    return tags


def pixels_and_bytes(data: bytes) -> tuple[int, int]:
    """Return the number of pixels that the largest image of a TIFF declares, and the number of its bytes present.

    (0, 0) where the numbers cannot be determined.
    """
    largest = (0, 0)
    for tags in _directories(data):
        sides = [_numbers(tags.get(number)) for number in (WIDTH, HEIGHT)]
        starts = _numbers(tags.get(STRIPS)) or _numbers(tags.get(TILES))
        counts = _numbers(tags.get(STRIPS + 6)) or _numbers(tags.get(TILES + 1))
        if all(sides) and starts and counts:
            present = sum(max(0, min(s + c, len(data)) - s) for s, c in zip(starts, counts, strict=False))
            largest = max(largest, (sides[0][0] * sides[1][0], present))
    return largest


def _directories(data: bytes) -> list[dict[int, Tag]]:
    """Return the first directory and its subdirectories."""
    order = ORDERS.get(data[:2])
    if order is None or len(data) < 8:
        return []
    (first,) = struct.unpack_from(f"{order}I", data, 4)
    found = [dict(_directory(data, order, first))]
    below = _numbers(found[0].get(SUBDIRECTORIES))[:16]
    return found + [dict(_directory(data, order, offset)) for offset in below]


def _numbers(tag: Tag | None) -> list[int]:
    """Return the values of a tag of integers; empty for any other tag."""
    if tag is None or tag[0] not in (SHORT, LONG):
        return []
    numbers: list[int] = np.frombuffer(tag[2], "<u2" if tag[0] == SHORT else "<u4").tolist()
    return numbers


def _directory(data: bytes, order: str, offset: int) -> Iterator[tuple[int, Tag]]:
    if offset + 2 > len(data):
        return
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    for i in range(min(count, MAX_TAGS)):
        entry = offset + 2 + 12 * i
        if entry + 12 > len(data):
            return
        number, kind, length = struct.unpack_from(f"{order}HHI", data, entry)
        size = SIZES.get(kind, 0) * length
        if not 0 < size <= MAX_TAG_BYTES:
            continue
        start = entry + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, entry + 8)[0]
        values = data[start : start + size]
        if len(values) == size:
            yield number, (kind, length, values if order == "<" else _swapped(values, kind))


def _swapped(values: bytes, kind: int) -> bytes:
    width = SIZES[kind] if kind not in (RATIONAL, SRATIONAL) else 4  # two numbers of 4 bytes
    return values if width == 1 else np.frombuffer(values, f">u{width}").astype(f"<u{width}").tobytes()
