"""Videos: every frame of a changed file is decoded."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import cv2
import numpy as np

from deploykit.runtime.sources.video import Video
from tests.fuzz.mutate import INTEGERS, changed_bytes
from tests.fuzz.target import Files, Target

FORMATS = (("mp4", "mp4v"), ("avi", "MJPG"), ("webm", "VP80"), ("mkv", "MJPG"), ("mov", "mp4v"))
MAX_PIXELS = 100_000
WORDS = (
    b"stsz",
    b"stts",
    b"stsc",
    b"stco",
    b"mdhd",
    b"mvhd",
    b"tkhd",
    b"stsd",
    b"mp4v",
    b"avih",
    b"strh",
    b"strf",
    b"idx1",
    b"elst",
)


class Videos(Target):
    """A short video of each container that this OpenCV writes."""

    name, memory, room = "videos", 256 << 20, 1 << 30

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds: dict[str, bytes] = {}
        rng = np.random.default_rng(0)
        for suffix, code in FORMATS:
            path = folder / f"seed.{suffix}"
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), 10, (32, 24))
            for _ in range(5):
                writer.write(rng.integers(0, 256, (24, 32, 3), np.uint8))
            writer.release()
            if path.exists() and path.stat().st_size:
                self.seeds[suffix] = path.read_bytes()
                path.unlink()

    def make(self, random: Random) -> Files:
        suffix = random.choice(sorted(self.seeds))
        data = self.seeds[suffix]
        if random.random() < 0.6:
            data = _field(random, data)
        if random.random() < 0.6:
            data = changed_bytes(random, data)
        return {f"x.{suffix}": data}

    def take(self, files: Files) -> None:
        for number, frame in enumerate(Video(self.written(files)).frames(max_pixels=MAX_PIXELS)):
            assert frame.image.shape[0] * frame.image.shape[1] <= MAX_PIXELS, frame.image.shape
            if number > 200:  # an index that is made to repeat itself gives as many as it likes
                break


def _field(random: Random, data: bytes) -> bytes:
    """Change a number near one of the words by which parts of a container are known."""
    places = [at for word in WORDS if (at := data.find(word)) >= 0]
    if not places:
        return changed_bytes(random, data)
    at = random.choice(places) + random.choice((-4, *range(4, 48, 4)))
    width = random.choice((2, 4))
    number = random.choice(INTEGERS) % (1 << 8 * width)
    return data[:at] + struct.pack(random.choice("<>") + {2: "H", 4: "I"}[width], number) + data[at + width :]


TARGET = Videos
