"""The boxes of an AVIF file: size, rotation and mirroring of its primary image (ISO/IEC 14496-12 and 23008-12).

OpenCV decodes the stored pixels and leaves out ``irot`` and ``imir``, by which every camera and editor turns an AVIF.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["AvifFacts", "avif_facts"]

BRANDS = {b"avif", b"avis"}
DEEPEST = 4096  # boxes on one level
TURNS = {
    (0, None): 1, (0, 1): 2, (2, None): 3, (0, 0): 4, (1, 0): 5, (3, None): 6, (3, 0): 7, (1, None): 8,
    (1, 1): 7, (2, 0): 2, (2, 1): 4, (3, 1): 5,
}  # fmt: skip
"""Quarter turns anticlockwise, then the axis of the mirror (0: top and bottom change places) -> EXIF's orientation."""


@dataclass(frozen=True)
class AvifFacts:
    """``size`` is (height, width) as stored, ``orientation`` as in EXIF; ``sequence``: the file is an animation."""

    size: tuple[int, int]
    orientation: int
    bits: int
    alpha: bool
    sequence: bool


def avif_facts(data: bytes) -> AvifFacts | None:
    """Return what the boxes of an AVIF say about its primary image; None if it is not AVIF or says no size.

    Raises:
        ValueError, IndexError, struct.error: a box is damaged.
    """
    top = list(_boxes(data))
    brands = next((body for name, body in top if name == b"ftyp"), b"")
    if not BRANDS & {brands[i : i + 4] for i in range(0, len(brands), 4) if i != 4}:
        return None
    meta = dict(_boxes(next(body for name, body in top if name == b"meta")[4:])) if b"meta" in dict(top) else {}
    primary = _number(meta[b"pitm"], 4, 4 if meta[b"pitm"][0] else 2)
    parts = dict(_boxes(meta[b"iprp"]))
    properties = list(_boxes(parts[b"ipco"]))
    own = [properties[i - 1] for i in _associated(parts[b"ipma"], primary) if 0 < i <= len(properties)]
    found = dict(own)
    width, height = struct.unpack_from(">II", found[b"ispe"], 4)
    turns = found[b"irot"][0] & 3 if b"irot" in found else 0
    axis = found[b"imir"][0] & 1 if b"imir" in found else None
    return AvifFacts(
        (height, width),
        TURNS[turns, axis],
        found[b"pixi"][5] if b"pixi" in found else 8,
        any(name == b"auxC" and b"alpha" in body for name, body in properties),
        b"avis" in brands[:4] and b"moov" in dict(top),
    )


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the content of each box on one level."""
    position = 0
    for _ in range(DEEPEST):
        if position + 8 > len(data):
            return
        length, name = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        elif length == 0:  # to the end
            length = len(data) - position
        if length < start - position:
            raise ValueError("a box is shorter than its header")
        yield name, data[start : position + length]
        position += length


def _associated(body: bytes, item: int) -> list[int]:
    """Return the numbers of the properties of an item, from 1, in their order."""
    version, flags = body[0], _number(body, 1, 3)
    id_size, size = (4 if version else 2), (2 if flags & 1 else 1)
    position = 8
    found: list[int] = []
    for _ in range(_number(body, 4, 4)):
        if position >= len(body):
            break
        number, count = _number(body, position, id_size), body[position + id_size]
        position += id_size + 1
        values = [_number(body, position + size * i, size) for i in range(count)]
        position += size * count
        if number == item:
            found += [value & (0x7FFF if size == 2 else 0x7F) for value in values]
    return found


def _number(data: bytes, position: int, size: int) -> int:
    return int.from_bytes(data[position : position + size], "big")
