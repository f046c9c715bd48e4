"""Write a mosaic as an uncompressed DNG file, with the levels and colours of its camera's image.

Format: Adobe's Digital Negative specification 1.6 on top of TIFF 6.0. One directory holds everything that a reader
needs. Tags about the camera and its colours are copied from the camera's own DNG or TIFF.
"""

from __future__ import annotations

import struct
from pathlib import Path

from deploykit.runtime.images.headers.tiff import ASCII, BYTE, LONG, RATIONAL, SHORT, SRATIONAL, Tag, tiff_tags
from deploykit.runtime.raw.mosaic import RawImage

__all__ = ["dng_bytes"]

COPIED_TAGS = {
    271, 272, 306, 33432, 36867, 50708, 50721, 50722, 50723, 50724, 50727, 50728, 50729, 50730, 50731, 50732, 50734,
    50778, 50779, 50964, 50965,
}  # fmt: skip
"""Make, model, dates, copyright; the camera's name, colour matrices, white balance, exposure, illuminants."""

ORIENTATIONS = {0: 1, 3: 3, 5: 8, 6: 6}  # LibRaw's flip -> TIFF's
DENOMINATOR = 1_000_000


def dng_bytes(raw: RawImage) -> bytes:
    """Return the content of the DNG file."""
    height, width = raw.mosaic.shape
    pixels = raw.mosaic.astype("<u2").tobytes()
    tags = _own_tags(raw)
    source = Path(raw.name)
    if raw.name and source.is_file():
        copied = tiff_tags(source.read_bytes())
        tags = {**{number: tag for number, tag in copied.items() if number in COPIED_TAGS}, **tags}
        tags |= {number: copied[number] for number in (50708, 50721, 50728, 50778) if number in copied}
    tags |= {
        254: _longs(0),
        256: _longs(width),
        257: _longs(height),
        258: _shorts(16),
        259: _shorts(1),  # no compression
        262: _shorts(32803),  # a mosaic
        273: _longs(0),  # position of the pixels, set below
        274: _shorts(ORIENTATIONS.get(raw.flip, 1)),
        277: _shorts(1),
        278: _longs(height),
        279: _longs(len(pixels)),
        284: _shorts(1),
    }
    return _file(tags, pixels)


def _own_tags(raw: RawImage) -> dict[int, Tag]:
    """Return the tags that follow from the mosaic itself."""
    tags = {
        33421: _shorts(2, 2),
        33422: (BYTE, 4, bytes(raw.pattern)),
        50706: (BYTE, 4, bytes((1, 4, 0, 0))),
        50707: (BYTE, 4, bytes((1, 1, 0, 0))),
        50708: _text("deploykit"),
        50710: (BYTE, 3, bytes((0, 1, 2))),
        50711: _shorts(1),
        50713: _shorts(2, 2),
        50714: _longs(*raw.black),
        50717: _longs(raw.white),
        50778: _shorts(21),  # daylight, D65
    }
    if raw.matrix:
        tags[50721] = _rationals(SRATIONAL, *(value for row in raw.matrix for value in row))
    else:  # readers need a matrix: that of sRGB stands in for an unknown camera
        tags[50721] = _rationals(SRATIONAL, 3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.204, 1.057)
    if raw.white_balance:
        green = raw.white_balance[1]
        tags[50728] = _rationals(RATIONAL, *(green / factor for factor in raw.white_balance))
    return tags


def _file(tags: dict[int, Tag], pixels: bytes) -> bytes:
    """Join the header, one directory followed by its values, and the pixels."""
    first = 8
    offset = first + 2 + 12 * len(tags) + 4
    values: list[bytes] = []
    offsets: dict[int, int] = {}
    for number, (_, _, data) in sorted(tags.items()):
        if len(data) > 4:
            offsets[number] = offset
            values.append(data + b"\0" * (len(data) % 2))
            offset += len(values[-1])
    start = offset + -offset % 16
    entries = []
    for number, (kind, count, data) in sorted(tags.items()):
        value = struct.pack("<I", start) if number == 273 else data.ljust(4, b"\0")
        entries.append(struct.pack("<HHI", number, kind, count) + value[:4])
        if number in offsets:
            entries[-1] = struct.pack("<HHII", number, kind, count, offsets[number])
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + struct.pack("<I", 0)
    head = struct.pack("<2sHI", b"II", 42, first) + directory + b"".join(values)
    return head.ljust(start, b"\0") + pixels


def _shorts(*values: int) -> Tag:
    return SHORT, len(values), struct.pack(f"<{len(values)}H", *values)


def _longs(*values: int) -> Tag:
    return LONG, len(values), struct.pack(f"<{len(values)}I", *values)


def _text(value: str) -> Tag:
    data = value.encode("ascii", "replace") + b"\0"
    return ASCII, len(data), data


def _rationals(kind: int, *values: float) -> Tag:
    numbers = [n for value in values for n in (round(value * DENOMINATOR), DENOMINATOR)]
    return kind, len(values), struct.pack(f"<{len(numbers)}{'I' if kind == RATIONAL else 'i'}", *numbers)
