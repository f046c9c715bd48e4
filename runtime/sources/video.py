"""Videos, frame by frame."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from deploykit.errors import ImageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import exists
from deploykit.runtime.images.gpu.video import GpuCapture, capture_on_gpu
from deploykit.runtime.images.opencv_path import opencv_path
from deploykit.runtime.images.pixels import check_pixels
from deploykit.runtime.images.reading import decoding_gpu
from deploykit.runtime.options import MAX_PIXELS
from deploykit.runtime.sources.addresses import Address
from deploykit.runtime.sources.frames import Frame, Skip

__all__ = ["OPEN_MS", "READ_MS", "Video", "capture_at", "read_frame"]

MOST_FAILURES = 1000  # frames in a row that cannot be decoded; what follows is given up
SPARE_FRAMES = 2  # that encoders and edit lists leave out at the ends
EXACT_COUNTS = {".3gp", ".avi", ".m4v", ".mov", ".mp4"}  # which list their frames; others are counted by their duration

OPEN_MS, READ_MS = 10_000, 10_000  # that FFmpeg may wait for a stream, and for its next frame

_log = logging.getLogger(__name__)


class Video:
    """A video file, or a finished stream at an address; it can be read once.

    Args:
        source: the file or the address.
        name: its name in results and messages; empty: that of the source.

    Attributes:
        name: the name.
        live: False; a :class:`deploykit.runtime.sources.live.Live` has frames that must not wait for each other.
        total: the number of frames that the file declares; None if it declares none.
        fps: frames per second; 30 if none is declared.

    Raises:
        ImageError: OpenCV cannot read the file as a video.
    """

    live = False

    def __init__(self, source: Path | Address, *, name: str = "") -> None:
        self.name = name or (source.name if isinstance(source, Address) else str(source))
        gpu = decoding_gpu()
        self._capture: cv2.VideoCapture | GpuCapture
        if isinstance(source, Address):
            self._capture = capture_at(source)
            if gpu is not None:
                _log.warning("%s is decoded on the CPU: only files are decoded on a GPU", self.name)
        elif exists(source) and not source.is_file():  # a pipe is waited for without an end
            raise ImageError(f"expected a video file, but {source} is a pipe or a device: copy it into a file first")
        else:
            with opencv_path(source) as path:
                self._capture = cv2.VideoCapture(path)
                if gpu is not None:
                    self._capture = capture_on_gpu(path, self.name, gpu, self._capture)
        if not self._capture.isOpened():
            raise ImageError(
                f"{self.name} is not a video that OpenCV can read: convert it to MP4 (H.264), or copy it again"
            )
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.total: int | None = count if count > 0 else None
        self.fps = self._declared_fps()

    def _declared_fps(self) -> float:
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        return fps if 0 < fps < 1000 else 30.0

    def frames(self, skip: Skip | None = None, *, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
        """Decode the frames one by one; the file is closed after the last one.

        A frame that cannot be decoded is passed over: decoders often go on at a later one. Frames are numbered as they
        are decoded. A file that gives fewer frames than it declares is reported after its last one.

        Raises:
            ImageError: a frame has more than ``max_pixels``; no frame could be decoded; or, after the last one, frames
                are missing and ``skip`` is None.
        """
        number = failed = gaps = 0
        try:
            sides = (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
            height, width = (int(self._capture.get(side)) for side in sides)
            if height * width > max_pixels:
                check_pixels((height, width), self.name, max_pixels)
            while failed <= self._patience(number):
                start = time.perf_counter()
                more, image = read_frame(self._capture)
                ms = (time.perf_counter() - start) * 1e3
                if not more:
                    failed += 1
                    continue
                gaps, failed = gaps + failed, 0
                yield Frame(image, self.name, number, ms, keep=True)
                number += 1
        finally:
            self._capture.release()
        said = self._missing(number, gaps)
        if not said:
            return
        if skip is None:
            raise ImageError(said)
        skip(ImageError(said))

    def _patience(self, number: int) -> int:
        """Return how many reads may fail in a row before the video counts as ended, after so many frames."""
        if self.total is None:
            return 0
        return min(max(self.total - number, 0), MOST_FAILURES)

    def _missing(self, number: int, gaps: int) -> str:
        """Say what a video lacks after its last frame; empty: nothing, or no more than an estimate may be wrong."""
        if number == 0:
            return f"{self.name} was opened, but none of its frames could be decoded"
        if self.total is None:
            return ""
        short = self.total - number
        if not gaps and short <= max(SPARE_FRAMES, self.total // 50):
            return ""
        told = f"{self.name} declares {self.total:,} frames, of which {number:,} could be decoded"
        if not gaps and Path(self.name).suffix.lower() not in EXACT_COUNTS:
            _log.warning("%s: its declared length may be an estimate, or its end is missing", told)
            return ""
        return f"{told}: the others are damaged or missing; copy it again"


def read_frame(capture: cv2.VideoCapture | GpuCapture) -> tuple[bool, Array]:
    """Return whether there is a further frame, and the frame; one on which OpenCV fails cannot be decoded."""
    try:
        return capture.read()
    except cv2.error:  # an assertion about the file, in OpenCV's own reader of AVI
        return False, np.empty(0, np.uint8)


def capture_at(address: Address) -> cv2.VideoCapture:
    """Return FFmpeg's reader of an address, opened or not. It never waits without an end."""
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_MS]
    # Without FFmpeg named, OpenCV's other readers take the address for a file's name, and print it with its password.
    return cv2.VideoCapture(address.text, cv2.CAP_FFMPEG, limits)
