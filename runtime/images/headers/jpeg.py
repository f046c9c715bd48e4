"""The structure of a JPEG file: its size, its orientation, and signs that its compressed data are damaged.

OpenCV decodes a damaged JPEG without an error: it fills the missing part with grey, or shows what the wrong bits mean
(libjpeg only prints to the error stream of the process). The markers, the Huffman tables and the decoded grey tell most
of it without a second decoder, in a few tenths of a millisecond. Format: ITU-T T.81.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from deploykit.runtime.arrays import Array

__all__ = ["Jpeg", "Scan", "damage_in", "grey_tail", "read_jpeg"]

SOS, EOI, DHT, DRI, APP1, COM = 0xDA, 0xD9, 0xC4, 0xDD, 0xE1, 0xFE
FRAMES = {*range(0xC0, 0xD0)} - {DHT, 0xC8, 0xCC}
SEQUENTIAL = {0xC0, 0xC1}  # Huffman-coded; 0xC2 is progressive
AFTER_A_SCAN = {SOS, EOI, DHT, DRI, 0xDB, 0xDC, COM, *range(0xE0, 0xF0)}
ALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}  # markers without a length
MOST_SEGMENTS, MOST_SCANS = 100_000, 500  # each scan costs a pass over the image, and a few bytes can hold one
ZEROS = bytes(64)  # more bits than the longest codes of a whole block take
GREY = 128  # the value of a block whose coefficients are all 0


@dataclass(frozen=True)
class Scan:
    """One scan: its compressed data are ``data[start:end]``.

    ``parts`` are the components in it; ``restarts`` the positions of its restart markers, which come after each
    ``interval`` units (0: none). ``band`` is the first and last coefficient, ``low`` the lowest bit that it gives.
    ``flat`` is the code of a unit of blocks without any change, as its bits and their number; None: there is none.
    ``zeros_are_flat``: zero bits stand for unchanged blocks.
    """

    start: int
    end: int
    parts: tuple[int, ...]
    restarts: Array
    interval: int
    band: tuple[int, int]
    low: int
    flat: tuple[int, int] | None
    zeros_are_flat: bool


@dataclass(frozen=True)
class Jpeg:
    """What the markers of a JPEG say; ``size`` is (height, width) as stored, None if there is no frame.

    ``components`` are the (horizontal, vertical) sampling factors, ``process`` the marker of the frame. ``complete``:
    the end marker was reached. ``broken_at``: the position of a marker that cannot be there.
    """

    size: tuple[int, int] | None
    process: int
    components: tuple[tuple[int, int], ...]
    exif: bytes
    scans: tuple[Scan, ...]
    complete: bool
    broken_at: int | None

    def units(self, parts: tuple[int, ...]) -> tuple[int, int]:
        """Return the (rows, columns) of coded units in a scan of these components."""
        assert self.size is not None
        height, width = self.size
        most = max(c[0] for c in self.components), max(c[1] for c in self.components)
        if len(parts) > 1:
            return -(-height // (8 * most[1])), -(-width // (8 * most[0]))
        own = self.components[parts[0]]
        columns, rows = -(-width * own[0] // most[0]), -(-height * own[1] // most[1])
        return -(-rows // 8), -(-columns // 8)


@dataclass
class _Walk:
    """What has been read so far."""

    size: tuple[int, int] | None = None
    process: int = 0
    ids: list[int] = field(default_factory=list)
    components: tuple[tuple[int, int], ...] = ()
    exif: bytes = b""
    interval: int = 0
    tables: dict[int, tuple[int, int, bool] | None] = field(default_factory=dict)
    scans: list[Scan] = field(default_factory=list)


def read_jpeg(data: bytes, *, size_only: bool = False, most: int = MOST_SEGMENTS) -> Jpeg:
    """Read the first ``most`` markers of a JPEG, or those up to the one that says its size.

    It never raises for what the bytes say.
    """
    walk, complete, broken = _Walk(), False, None
    array = np.frombuffer(data, np.uint8)
    position, markers = 2, None
    for _ in range(most):
        if position + 2 > len(data) or len(walk.scans) > MOST_SCANS:
            break
        if data[position] != 0xFF or data[position + 1] in (0, 0xFF):
            position = data.find(b"\xff", position + 1)  # fill bytes, and what libjpeg passes over too
            if position < 0:
                break
            continue
        marker, start = data[position + 1], position + 4
        if marker == EOI:
            complete = True
            break
        if marker in ALONE:
            position += 2
            continue
        after = position + 2 + int.from_bytes(data[position + 2 : start], "big")
        segment = data[start:after]
        try:
            _take(walk, marker, segment)
            position = max(after, position + 2)
            if marker == SOS and walk.size is not None:
                markers = _markers(array, position) if markers is None else markers
                position, broken = _scan(walk, data, segment, position, markers)
        except (IndexError, ValueError):  # a segment is shorter than it must be
            broken = position
        if broken is not None or (size_only and walk.size is not None):
            break
    return Jpeg(walk.size, walk.process, walk.components, walk.exif, tuple(walk.scans), complete, broken)


def _take(walk: _Walk, marker: int, segment: bytes) -> None:
    """Keep what one segment says."""
    if marker in FRAMES and walk.size is None:
        walk.size = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
        walk.process = marker
        parts = [segment[6 + 3 * i : 9 + 3 * i] for i in range(segment[5])]
        walk.ids = [part[0] for part in parts]
        walk.components = tuple((max(part[1] >> 4, 1), max(part[1] & 15, 1)) for part in parts)
        if not parts:
            raise ValueError("a frame without components")
    elif marker == DRI:
        walk.interval = int.from_bytes(segment[:2], "big")
    elif marker == DHT:
        for name, code in _codes_of_zero(segment):
            walk.tables[name] = code
    elif marker == APP1 and segment[:6] == b"Exif\0\0" and not walk.exif:
        walk.exif = segment[6:]


def _codes_of_zero(segment: bytes) -> Iterator[tuple[int, tuple[int, int, bool] | None]]:
    """Yield each Huffman table's number and its code for the symbol 0: bits, length, whether they are all zero."""
    position = 0
    while position + 17 <= len(segment):
        name, counts = segment[position], segment[position + 1 : position + 17]
        symbols = segment[position + 17 : position + 17 + sum(counts)]
        code = index = 0
        found = None
        for length, count in enumerate(counts, start=1):
            at = symbols[index : index + count].find(0)
            if at >= 0 and found is None:
                found = code + at, length, code + at == 0
            code, index = (code + count) << 1, index + count
        yield name, found
        position += 17 + sum(counts)


def _markers(array: Array, start: int) -> Array:
    """Return the positions of all markers from ``start`` on: 0xFF and something that is neither 0 nor a fill byte."""
    places = start + np.flatnonzero(array[start:-1] == 0xFF)
    following = array[places + 1]
    found: Array = places[(following != 0) & (following != 0xFF)]
    return found


def _scan(walk: _Walk, data: bytes, segment: bytes, start: int, markers: Array) -> tuple[int, int | None]:
    """Add one scan; return where the next marker is, and the position of a marker that cannot be there."""
    first = int(np.searchsorted(markers, start))
    own = markers[first:]
    kinds = np.frombuffer(data, np.uint8)[own + 1]
    others = np.flatnonzero((kinds < 0xD0) | (kinds > 0xD7))
    last = int(others[0]) if len(others) else len(own)
    end = int(own[last]) if last < len(own) else len(data)
    parts, codes = [], []
    if not segment[0]:
        return end, start
    for i in range(segment[0]):
        name, chosen = segment[1 + 2 * i : 3 + 2 * i]
        if name not in walk.ids:
            return end, start
        parts.append(walk.ids.index(name))
        codes.append((walk.tables.get(chosen >> 4), walk.tables.get(0x10 | chosen & 15)))
    low, high, approximation = segment[1 + 2 * segment[0] :][:3]
    flat, zeros = _flat_unit(walk, parts, codes)
    walk.scans.append(
        Scan(start, end, tuple(parts), own[:last], walk.interval, (low, high), approximation & 15, flat, zeros)
    )
    wrong = last < len(own) and int(kinds[last]) not in AFTER_A_SCAN
    return end, end if wrong else None


def _flat_unit(
    walk: _Walk, parts: list[int], codes: list[tuple[tuple[int, int, bool] | None, tuple[int, int, bool] | None]]
) -> tuple[tuple[int, int] | None, bool]:
    """Return the code of a unit in which nothing changes, and whether it consists of zero bits."""
    bits = length = 0
    zeros = True
    for part, pair in zip(parts, codes, strict=True):
        across, down = walk.components[part]
        for code in pair * (across * down if len(parts) > 1 else 1):
            if code is None:
                return None, False
            bits, length, zeros = bits << code[1] | code[0], length + code[1], zeros and code[2]
    return (bits, length), zeros


def damage_in(jpeg: Jpeg, data: bytes) -> str:
    """Return what is wrong with the compressed data as the markers and tables tell; empty: nothing was found."""
    if jpeg.broken_at is not None:
        return f"a marker that cannot be there at byte {jpeg.broken_at:,}"
    if len(jpeg.scans) > MOST_SCANS:
        return f"it has more than {MOST_SCANS} scans"
    if not jpeg.complete or jpeg.size is None:
        return "the end marker is missing"
    if not jpeg.scans:
        return "it has no compressed data"
    if jpeg.process not in SEQUENTIAL | {0xC2} or 0 in jpeg.size:
        return ""
    for scan in jpeg.scans:
        said = _damage_in_scan(jpeg, scan, data)
        if said:
            return said
    blocks = sum(a * b for a, b in (jpeg.units((i,)) for i in range(len(jpeg.components))))
    if 8 * sum(scan.end - scan.start for scan in jpeg.scans) < blocks:  # at least one bit per block
        return f"{len(data):,} bytes cannot hold {blocks:,} blocks of 8x8 pixels"
    return _missing_scans(jpeg)


def _damage_in_scan(jpeg: Jpeg, scan: Scan, data: bytes) -> str:
    rows, columns = jpeg.units(scan.parts)
    expected = -(-rows * columns // scan.interval) - 1 if scan.interval else 0
    numbers = np.frombuffer(data, np.uint8)[scan.restarts + 1] & 7
    if scan.interval and not np.array_equal(numbers[:expected], np.arange(expected) % 8):
        return f"expected {expected:,} restart markers in order, found {len(numbers):,} or another order"
    if jpeg.process in SEQUENTIAL and scan.flat is not None and not scan.zeros_are_flat:
        at = data.find(ZEROS, scan.start, scan.end)
        if at >= 0:
            return f"a stretch of zero bytes at byte {at:,}, which its Huffman codes cannot give"
    return ""


def _missing_scans(jpeg: Jpeg) -> str:
    """Say whether a progressive JPEG lacks scans of its brightness, or the means of the blocks of a component."""
    if jpeg.process in SEQUENTIAL:
        return ""
    lowest = [[99] * 64 for _ in jpeg.components]
    for scan in jpeg.scans:
        for part in scan.parts:
            for i in range(scan.band[0], min(scan.band[1], 63) + 1):
                lowest[part][i] = min(lowest[part][i], scan.low)
    means = all(bits[0] == 0 for bits in lowest)
    return "" if means and max(lowest[0]) == 0 else "its last scans are missing"


def grey_tail(jpeg: Jpeg, data: bytes, image: Array) -> str:
    """Return whether the compressed data end before the image does; empty: they do not.

    The decoder then fills the rest (up to the next restart marker) with grey. Grey that is really in the image is
    encoded, so the data end with the code of an unchanged unit.

    Args:
        jpeg: what :func:`read_jpeg` returned for ``data``.
        data: the file.
        image: the decoded image as stored, ``uint8 (H, W)`` or BGR ``(H, W, 3)``.
    """
    if jpeg.process not in SEQUENTIAL or len(jpeg.scans) != 1 or len(jpeg.components) not in (1, 3):
        return ""
    (scan,) = jpeg.scans
    if jpeg.size != image.shape[:2] or scan.interval == 1:
        return ""
    rows, columns = jpeg.units(scan.parts)
    count = rows * columns
    every = scan.interval or count
    if count < 2:
        return ""
    down, across = (8, 8) if len(scan.parts) == 1 else (8 * max(c[axis] for c in jpeg.components) for axis in (1, 0))
    y, x = (
        np.minimum(np.arange(units) * side + side // 2, most - 1)
        for units, side, most in ((rows, down, image.shape[0]), (columns, across, image.shape[1]))
    )
    image = image.reshape(*image.shape[:2], -1)
    grey = (image[np.ix_(y, x)] == GREY).all(-1).ravel()
    last = np.minimum(np.arange(every, count + every, every), count) - 1
    ends = [*scan.restarts.tolist(), scan.end]
    starts = [scan.start, *(at + 2 for at in scan.restarts.tolist())]
    for i in np.flatnonzero(grey[last] & grey[last - 1]).tolist():
        units = (divmod(int(last[i]) - back, columns) for back in (0, 1))
        if not all(_is_grey(image[row * down :, column * across :][:down, :across]) for row, column in units):
            continue
        if i < len(ends) and not _ends_with(data[starts[i] : ends[i]], scan.flat):
            unit = int(last[i])
            while unit > 0 and grey[unit - 1]:
                unit -= 1
            return f"its compressed data end early, so the image is grey from row {unit // columns * down:,} on"
    return ""


def _is_grey(unit: Array) -> bool:
    """Return whether all of a unit is grey, without the margin into which its neighbours' colours may spread."""
    inside = unit[2:-2, 2:-2] if min(unit.shape[:2]) > 4 else unit
    return bool((inside == GREY).all())


def _ends_with(part: bytes, flat: tuple[int, int] | None) -> bool:
    """Return whether compressed data end with a code, up to seven bits of padding after it."""
    if flat is None:
        return False
    bits, length = flat
    tail = part[-2 * (length // 8 + 3) :].replace(b"\xff\0", b"\xff")
    number = int.from_bytes(tail, "big")
    for padding in range(8):
        ones = number & (1 << padding) - 1
        if ones in (0, (1 << padding) - 1) and number >> padding & (1 << length) - 1 == bits:
            return True
    return False
