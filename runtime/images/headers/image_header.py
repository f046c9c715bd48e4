"""What the header of an encoded image says, before a pixel is decoded: format, size, orientation, bits, transparency.

A few bytes can declare an image of gigabytes, so the size is checked first. An image whose header is not understood
here is not decoded at all. OpenCV's own limit stays behind this one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deploykit.runtime.images.headers.isobmff import avif_facts
from deploykit.runtime.images.headers.jpeg import Jpeg, read_jpeg
from deploykit.runtime.images.headers.tiff import count_directories, first_directory, numbers_of

__all__ = ["ImageHeader", "declared_size", "read_header", "size_at_once"]

JPEG = b"\xff\xd8\xff"
ORIENTATION = 274  # TIFF's tag, in EXIF too
LOG_LUV = (34676, 34677)  # compressions of floating-point colours
MANY = 10_000  # images in one file that are counted
MOST_CHUNKS = 100_000  # of a file that are looked at
SOON = 1000  # segments of a JPEG that are looked at in less than a millisecond


@dataclass(frozen=True)
class ImageHeader:
    """The header of an image.

    Attributes:
        format: its name, such as ``PNG``.
        size: (height, width) as stored.
        orientation: how to turn it upright, 1 to 8 as in EXIF; 1: it is upright.
        bits: the bits per channel.
        alpha: it has an alpha channel, or transparent colours.
        images: the number of images in the file, or frames of an animation; 0: several.
        most: the value of full scale, if it has 16 bits per channel.
        real: its values are floating-point numbers.
        jpeg: the markers of a JPEG.
    """

    format: str
    size: tuple[int, int]
    orientation: int = 1
    bits: int = 8
    alpha: bool = False
    images: int = 1
    most: int = 2**16 - 1
    real: bool = False
    jpeg: Jpeg | None = None

    @property
    def upright_size(self) -> tuple[int, int]:
        """The (height, width) of the image when it is turned upright."""
        return (self.size[1], self.size[0]) if self.orientation > 4 else self.size


def read_header(data: bytes) -> ImageHeader | None:
    """Return the header of an encoded image; None if the format is unknown here, or the header is damaged."""
    found = next((read for magic, read in READERS if data.startswith(magic)), None)
    if found is None and data[4:8] == b"ftyp":
        found = _avif
    try:
        return None if found is None else found(data)
    except (IndexError, KeyError, StopIteration, ValueError, struct.error):
        return None


def declared_size(data: bytes) -> tuple[int, int] | None:
    """Return the (height, width) of :func:`read_header` without a pass over the compressed data of a JPEG."""
    if data.startswith(JPEG):
        return read_jpeg(data, size_only=True).size
    header = read_header(data)
    return None if header is None else header.size


def size_at_once(data: bytes) -> tuple[int, int] | None:
    """Return what :func:`declared_size` returns where that takes no time, which it does for nearly every JPEG.

    None: the size is behind much else, or the format is another one, whose header may take some tenths of a second.
    """
    return read_jpeg(data, size_only=True, most=SOON).size if data.startswith(JPEG) else None


def _jpeg(data: bytes) -> ImageHeader | None:
    found = read_jpeg(data)
    if found.size is None:
        return None
    return ImageHeader("JPEG", found.size, _exif(found.exif), jpeg=found)


def _exif(block: bytes) -> int:
    """Return the orientation that an EXIF block (a TIFF without an image) states; 1 if it states none."""
    value = numbers_of(first_directory(block.removeprefix(b"Exif\0\0")).get(ORIENTATION))
    return value[0] if value and 1 <= value[0] <= 8 else 1


def _png(data: bytes) -> ImageHeader:
    width, height, bits, kind = struct.unpack_from(">IIBB", data, 16)
    chunks = dict(_chunks(data))
    frames = int.from_bytes(chunks.get(b"acTL", b"")[:4], "big") or 1
    exif = _exif(chunks.get(b"eXIf", b""))
    return ImageHeader("PNG", (height, width), exif, bits, kind in (4, 6) or b"tRNS" in chunks, frames)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the chunks of a PNG but for its compressed data.

    A chunk longer than the file is refused here: OpenCV takes the memory that it declares, up to 4 GB.
    """
    position = 8
    for _ in range(MOST_CHUNKS):
        if position + 8 > len(data):
            return
        length = int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        if position + 8 + length > len(data):
            raise ValueError("a chunk is longer than the file")
        if name != b"IDAT":
            yield name, data[position + 8 : position + 8 + length]
        position += 12 + length


def _webp(data: bytes) -> ImageHeader | None:
    if data[8:12] != b"WEBP":
        return None
    chunks = list(_riff(data))
    exif = next((_exif(body) for name, body in chunks if name == b"EXIF"), 1)
    frames = sum(name == b"ANMF" for name, _ in chunks) or 1
    sizes: list[tuple[int, int]] = []
    alpha = False
    for name, body in chunks:
        if name == b"VP8X":
            sizes.append((1 + int.from_bytes(body[7:10], "little"), 1 + int.from_bytes(body[4:7], "little")))
            alpha |= bool(body[0] & 0x10)
        elif name == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", body, 6)
            sizes.append((height & 0x3FFF, width & 0x3FFF))
        elif name == b"VP8L" and body[:1] == b"\x2f":
            packed = int.from_bytes(body[1:5], "little")
            sizes.append((1 + (packed >> 14 & 0x3FFF), 1 + (packed & 0x3FFF)))
            alpha |= bool(packed >> 28 & 1)
    return ImageHeader("WebP", max(sizes), exif, alpha=alpha, images=frames)


def _riff(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    for _ in range(MOST_CHUNKS):
        if position + 8 > len(data):
            return
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        yield data[position : position + 4], data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _bmp(data: bytes) -> ImageHeader:
    if struct.unpack_from("<I", data, 14)[0] == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return ImageHeader("BMP", (abs(height), abs(width)))


def _gif(data: bytes) -> ImageHeader:
    width, height, packed = struct.unpack_from("<HHB", data, 6)
    position, frames, blocks = 13 + (3 << (packed & 7) + 1 if packed & 0x80 else 0), 0, 0
    while frames < MANY and position < len(data) and data[position] in b"\x21\x2c":
        if data[position] == 0x2C:
            left, top, across, down, packed = struct.unpack_from("<HHHHB", data, position + 1)
            width, height, frames = max(width, left + across), max(height, top + down), frames + 1
            position += 11 + (3 << (packed & 7) + 1 if packed & 0x80 else 0)
        else:
            position += 2
        while position < len(data) and data[position]:  # sub-blocks, each with its length
            position, blocks = position + 1 + data[position], blocks + 1
            if blocks > 10 * MOST_CHUNKS:
                return ImageHeader("GIF", (height, width), images=0)
        position += 1
    return ImageHeader("GIF", (height, width), images=max(frames, 1))


def _pnm(data: bytes) -> ImageHeader | None:
    words = _words(data[:4096])
    kind = next(words)
    if kind == b"P7":
        fields: dict[bytes, bytes] = {}
        for word in words:
            if word == b"ENDHDR":
                break
            fields[word] = next(words)
        most = int(fields[b"MAXVAL"])
        size, alpha = (int(fields[b"HEIGHT"]), int(fields[b"WIDTH"])), fields[b"DEPTH"] in (b"2", b"4")
        return _netpbm("PAM", size, most, alpha=alpha)
    if kind not in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF"):
        return None
    width, height = int(next(words)), int(next(words))
    most = int(next(words)) if kind in (b"P2", b"P3", b"P5", b"P6") else 1
    return _netpbm("PNM", (height, width), most, real=kind in (b"Pf", b"PF"))


def _netpbm(name: str, size: tuple[int, int], most: int, *, alpha: bool = False, real: bool = False) -> ImageHeader:
    wide = 255 < most < 2**16
    return ImageHeader(name, size, bits=16 if wide else 8, alpha=alpha, real=real, most=most if wide else 2**16 - 1)


def _words(data: bytes) -> Iterator[bytes]:
    """Yield the words of a header that is text, without comments."""
    for line in data.split(b"\n"):
        yield from line.split(b"#", 1)[0].split()
    raise ValueError("the header ends early")


def _tiff(data: bytes) -> ImageHeader | None:
    pages = count_directories(data, MANY)
    if not pages:
        return None
    tags = first_directory(data)

    def first(number: int, default: int) -> int:
        return (numbers_of(tags.get(number)) or [default])[0]

    orientation = first(ORIENTATION, 1)
    return ImageHeader(
        "TIFF",
        (first(257, 0), first(256, 0)),
        orientation if 1 <= orientation <= 8 else 1,
        first(258, 1),
        alpha=first(277, 1) > (3 if first(262, 0) == 2 else 1) if first(262, 0) in (0, 1, 2) else False,
        images=pages,
        real=first(339, 1) == 3 or first(259, 1) in LOG_LUV,
    )


def _jp2(data: bytes) -> ImageHeader | None:
    start = data.find(b"\xff\x4f\xff\x51")  # the codestream's first two markers
    if start < 0:
        return None
    right, below, left, top = struct.unpack_from(">IIII", data, start + 8)
    parts = struct.unpack_from(">H", data, start + 40)[0]
    return ImageHeader(
        "JPEG 2000", (below - top, right - left), bits=(data[start + 42] & 0x7F) + 1, alpha=parts in (2, 4)
    )


def _sun(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from(">II", data, 4)
    return ImageHeader("Sun raster", (height, width))


def _radiance(data: bytes) -> ImageHeader | None:
    line = data[: 1 << 16].partition(b"\n\n")[2].partition(b"\n")[0].split()
    sides = dict(zip(line[::2], line[1::2], strict=True))
    sizes = {name[1:]: int(value) for name, value in sides.items()}
    return ImageHeader("Radiance HDR", (sizes[b"Y"], sizes[b"X"])) if set(sizes) == {b"X", b"Y"} else None


def _avif(data: bytes) -> ImageHeader | None:
    found = avif_facts(data)
    if found is None:
        return None
    return ImageHeader(
        "AVIF", found.size, found.orientation, found.bits, found.alpha, images=0 if found.sequence else 1
    )


READERS: tuple[tuple[bytes, Callable[[bytes], ImageHeader | None]], ...] = (
    (JPEG, _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"RIFF", _webp),
    (b"BM", _bmp),
    (b"GIF8", _gif),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
    (b"II+\0", _tiff),
    (b"MM\0+", _tiff),
    (b"P", _pnm),
    (b"\0\0\0\x0cjP  \r\n\x87\n", _jp2),
    (b"\xff\x4f\xff\x51", _jp2),
    (b"\x59\xa6\x6a\x95", _sun),
    (b"#?RADIANCE", _radiance),
    (b"#?RGBE", _radiance),
)
"""The first bytes of a format, and what reads its header."""
