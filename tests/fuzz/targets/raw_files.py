"""RAW files: DNG of our own writer, with tags and bytes changed."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

from deploykit.runtime.raw.dng import dng_bytes
from deploykit.runtime.raw.mosaic import develop_raw, pack, read_raw
from tests.fuzz.mutate import INTEGERS, changed_bytes
from tests.fuzz.target import Files, Target
from tests.runtime.raw.test_mosaic import PATTERNS, image

SUFFIXES = ("dng", "dng", "dng", "arw", "nef", "cr2", "raf", "kdc")
MAX_PIXELS = 100_000


class RawFiles(Target):
    """The mosaic of a camera's file, and the image that LibRaw develops from it."""

    name, memory = "raw_files", 256 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = [dng_bytes(image(24, 32, pattern)) for pattern in PATTERNS]
        self.seeds.append(dng_bytes(image(25, 33, "RGGB", white_balance=(2.0, 1.0, 1.5), flip=6)))

    def make(self, random: Random) -> Files:
        data = random.choice(self.seeds)
        if random.random() < 0.7:
            data = _tag(random, data)
        if random.random() < 0.5:
            data = changed_bytes(random, data)
        return {f"x.{random.choice(SUFFIXES)}": data}

    def take(self, files: Files) -> None:
        path = self.written(files)
        pack(read_raw(path, max_pixels=MAX_PIXELS))
        develop_raw(path, max_pixels=MAX_PIXELS)


def _tag(random: Random, data: bytes) -> bytes:
    """Change the type, the count or the value of an entry of the first directory."""
    found = bytearray(data)
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    place = start + 2 + 12 * random.randrange(count)
    offset, width = random.choice(((0, 2), (2, 2), (4, 4), (8, 4), (8, 2)))
    number = random.choice(INTEGERS) % (1 << 8 * width)
    found[place + offset : place + offset + width] = number.to_bytes(width, "little")
    return bytes(found)


TARGET = RawFiles
