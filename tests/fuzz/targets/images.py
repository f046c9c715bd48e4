"""Encoded images of every format, and headers that declare what is not there."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import pytest

from deploykit.runtime.arrays import Array
from deploykit.runtime.images import reading
from deploykit.runtime.images.headers.image_header import read_header
from tests.fuzz.mutate import INTEGERS, changed_bytes
from tests.fuzz.target import Failed, Files, Target

MAX_PIXELS = 1_000_000
SIDES = (0, 1, 2, 17, 1000, 1001, 4096, 30_000, 60_000, 65_535, 65_536, 2**20, 2**31 - 1, 2**31, 2**32 - 1)
EXTENSIONS = ("jpg", "png", "webp", "tiff", "bmp", "jp2", "avif", "ppm", "pgm", "pbm", "pam", "gif", "ras", "hdr")


class Images(Target):
    """The reader of images: no pixel of an image over the limit is decoded, and what comes out is within it."""

    name, memory = "images", 192 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = seeds()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(reading, "cv2", _Watched())

    def make(self, random: Random) -> Files:
        name = random.choice(sorted(self.seeds))
        data = self.seeds[name]
        if random.random() < 0.5:
            data = _in_structure(random, data)
        if random.random() < 0.6:
            data = changed_bytes(random, data)
        return {"image": data, "how": bytes([random.choice((0, 1, 3, 3, 3, 3, 4)), random.randrange(2)])}

    def take(self, files: Files) -> None:
        channels, turn = files["how"]
        image = reading.decode_image(files["image"], channels=channels or None, max_pixels=MAX_PIXELS, turn=bool(turn))
        assert image.dtype == np.uint8, image.dtype
        assert image.shape[0] * image.shape[1] <= MAX_PIXELS, image.shape
        assert channels == 0 or image.shape[2] == (3 if channels == 1 else channels), image.shape

    def close(self) -> None:
        self.patch.undo()


class _Watched:
    """OpenCV, whose decoder must not be given an image over the limit."""

    def __getattr__(self, name: str) -> Any:
        return getattr(cv2, name)

    def imdecode(self, data: Array, flags: int) -> Array | None:
        """Decode."""
        header = read_header(data.tobytes())
        if header is None or header.size[0] * header.size[1] > MAX_PIXELS:
            raise Failed("an image is decoded whose header was not taken")
        found: Array | None = cv2.imdecode(data, flags)
        if found is not None and found.shape[0] * found.shape[1] > MAX_PIXELS:
            raise Failed(f"{found.shape} was decoded where the header says {header.size}")
        return found


def seeds() -> dict[str, bytes]:
    """Images of 17 x 13 pixels, and of one, in every format and kind of pixel that this OpenCV and Pillow write."""
    from PIL import Image  # of the extra eval

    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (13, 17, 3), np.uint8)
    kinds: dict[str, Array] = {
        "colour": colour,
        "grey": colour[..., 0].copy(),
        "alpha": rng.integers(0, 256, (13, 17, 4), np.uint8),
        "deep": rng.integers(0, 65_536, (13, 17, 3), np.uint16),
        "one": colour[:1, :1].copy(),
        "real": rng.random((13, 17, 3), np.float32),
    }
    found: dict[str, bytes] = {}
    for extension in EXTENSIONS:
        for kind, image in kinds.items():
            if (kind == "real") != (extension == "hdr") or (extension in ("pgm", "pbm") and image.ndim == 3):
                continue
            large = np.tile(image, (4, 4, 1)[: image.ndim]) if extension == "jp2" else image  # which has more levels
            try:
                done, data = cv2.imencode(f".{extension}", large)
            except cv2.error:
                continue
            if done and len(data):
                found[f"{kind}.{extension}"] = data.tobytes()
    found["progressive.jpg"] = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    found["restarts.jpg"] = cv2.imencode(".jpg", colour, [cv2.IMWRITE_JPEG_RST_INTERVAL, 1])[1].tobytes()
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 6) + bytes(4)
    plain = found["colour.jpg"]
    found["turned.jpg"] = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
    pillow = Image.fromarray(colour[..., ::-1])
    frames = [Image.fromarray(np.roll(colour, shift, 0)) for shift in range(3)]
    drawn: list[tuple[str, Any, dict[str, Any]]] = [
        *((f"palette.{suffix}", pillow.convert("P"), {}) for suffix in ("png", "gif", "tiff", "bmp")),
        ("cmyk.jpg", pillow.convert("CMYK"), {}), ("cmyk.tiff", pillow.convert("CMYK"), {}),
        ("bits.png", pillow.convert("1"), {}), ("lzw.tiff", pillow, {"compression": "tiff_lzw"}),
        ("moving.gif", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("moving.webp", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("pages.tiff", frames[0], {"save_all": True, "append_images": frames[1:]}),
    ]  # fmt: skip
    for name, image_of_pillow, options in drawn:
        stream = BytesIO()
        image_of_pillow.save(stream, {"jpg": "JPEG"}.get(kind := name.rpartition(".")[2], kind), **options)
        found[name] = stream.getvalue()
    return found


def _in_structure(random: Random, data: bytes) -> bytes:
    """Return an image with its size, or another part of its header, changed where its format keeps it."""
    for magic, change in ((b"\x89PNG", _png), (b"\xff\xd8", _jpeg), (b"RIFF", _riff), (b"II*\0", _tiff), (b"BM", _bmp)):
        if data.startswith(magic):
            return change(random, data)
    if data.startswith((b"P", b"#?", b"GIF8")):
        return _texts(random, data)
    return _boxes(random, data)


def bomb_png(width: int, height: int) -> bytes:
    """Return a PNG of black pixels, whose data are a thousandth of them."""
    packed = zlib.compress(bytes((width + 7) // 8 + 1) * min(height, 1000), 9)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, body) for kind, body in parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(random: Random, data: bytes) -> bytes:
    """Change chunks; their checksums are right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    place = random.randrange(len(chunks))
    kind, body = chunks[place]
    what = random.randrange(6)
    if what < 3 and chunks[0][0] == b"IHDR":
        sizes = struct.pack(">II", random.choice(SIDES), random.choice(SIDES))
        header = bytes(random.choice((0, 1, 2, 3, 4, 6, 8, 16, 255)) for _ in range(5))
        chunks[0] = (b"IHDR", sizes + (header if what == 0 else chunks[0][1][8:]))
    elif what == 3:
        chunks[place] = (kind, changed_bytes(random, body))
    elif what == 4:
        chunks.insert(
            place, (random.choice((kind, b"acTL", b"eXIf", b"tRNS", b"PLTE", b"iCCP", b"IEND", b"xxxx")), body)
        )
    else:
        del chunks[place]
    return data[:8] + b"".join(_chunk(*each) for each in chunks)


def _jpeg(random: Random, data: bytes) -> bytes:
    """Change the frame's size, its number of components or its process; or a segment's length."""
    found = bytearray(data)
    at = 2
    places = []
    while at + 9 < len(data) and data[at] == 0xFF:
        places.append(at)
        if data[at + 1] == 0xDA:
            break
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    for place in places:
        if data[place + 1] in (0xC0, 0xC1, 0xC2) and random.random() < 0.7:
            found[place + 5 : place + 9] = struct.pack(
                ">HH", random.choice(SIDES) % 65536, random.choice(SIDES) % 65536
            )
            return bytes(found)
    place = random.choice(places)
    if random.random() < 0.5:
        found[place + 1] = random.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xD8, 0xDA, 0xDB, 0xE1, 0xEE, 0xFE))
    else:
        found[place + 2 : place + 4] = (random.choice(INTEGERS) % 65536).to_bytes(2, "big")
    return bytes(found)


def _riff(random: Random, data: bytes) -> bytes:
    found = bytearray(data)
    place = random.choice([at for at in (4, 16, 20, 21, 24, 26, 27, 28, 30) if at < len(data)])
    width = random.choice((1, 2, 3, 4))
    found[place : place + width] = (random.choice(SIDES) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(found)


def _tiff(random: Random, data: bytes) -> bytes:
    """Change an entry of the first directory: its tag, its type, its count or its value."""
    found = bytearray(data)
    (start,) = struct.unpack("<I", data[4:8])
    if start + 2 > len(data):
        return data
    (count,) = struct.unpack("<H", data[start : start + 2])
    place = start + 2 + 12 * random.randrange(max(count, 1))
    offset, width = random.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 4), (8, 4)))
    number = random.choice((*SIDES, *INTEGERS)) % (1 << 8 * width)
    found[place + offset : place + offset + width] = number.to_bytes(width, "little")
    return bytes(found)


def _bmp(random: Random, data: bytes) -> bytes:
    found = bytearray(data)
    place, width = random.choice(
        ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4))
    )
    found[place : place + width] = (random.choice((*SIDES, *INTEGERS)) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(found)


def _texts(random: Random, data: bytes) -> bytes:
    """Change a number that is written in digits, or of a GIF its size."""
    if data.startswith(b"GIF8"):
        sizes = struct.pack("<HH", random.choice(SIDES) % 65536, random.choice(SIDES) % 65536)
        return data[:6] + sizes + data[10:]
    words = data[:40].split(b" ") if b" " in data[:40] else data[:40].split(b"\n")
    words[random.randrange(len(words))] = str(random.choice((*SIDES, *INTEGERS))).encode()
    return (b" " if b" " in data[:40] else b"\n").join(words) + data[40:]


def _boxes(random: Random, data: bytes) -> bytes:
    """Change a number of four bytes near one of the words by which boxes are known."""
    places = [
        at
        for word in (b"ftyp", b"ispe", b"iprp", b"ipma", b"irot", b"jp2h", b"ihdr", b"meta")
        if (at := data.find(word)) > 0
    ]
    if not places:
        return changed_bytes(random, data)
    at = random.choice(places) + random.choice((-4, 4, 8, 12))
    return data[:at] + struct.pack(">I", random.choice(SIDES)) + data[at + 4 :]


TARGET = Images
