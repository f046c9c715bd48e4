"""Cameras and live streams: only the newest frame counts, and a stream that broke off is opened again."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Iterator

import cv2

from deploykit.errors import DeployError, ImageError, NotFoundError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.pixels import check_pixels
from deploykit.runtime.options import MAX_PIXELS, RECONNECT
from deploykit.runtime.sources.addresses import WEB, Address
from deploykit.runtime.sources.frames import Frame, Skip
from deploykit.runtime.sources.video import OPEN_MS, READ_MS, Video, capture_at, read_frame
from deploykit.runtime.sources.web import content_at, is_finished

__all__ = ["Live"]

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a stream is opened again; each pause is twice the last one
LAST_WAIT = 2.0  # seconds that closing waits for the reader
LONGEST_WAIT = 0.2  # seconds between two looks for a frame
AT_EXIT = READ_MS / 1e3 + 1  # seconds that the end of the interpreter waits for a reader

_log = logging.getLogger(__name__)


class Live(Video):
    """A camera by its number, or a live stream by its address (RTSP, RTMP, HLS, MJPEG over HTTP).

    A thread reads all frames as they come and keeps the newest one, so that results never lag behind. What came while
    a result was computed is dropped and counted. A stream that breaks off is opened again.

    Attributes:
        received: the number of frames that came.

    Raises:
        NotFoundError: there is no such camera, or nothing at the address.
        FetchError: the server cannot be reached. ImageError: FFmpeg cannot read the stream.
    """

    live = True

    def __init__(self, source: int | Address) -> None:
        self.total = None
        self.name = f"camera {source}" if isinstance(source, int) else source.name
        self.received = self._offered = self._taken = 0
        self._newest: _Newest | None = None
        self._source = source
        self._closed = threading.Event()
        if isinstance(source, Address) and source.scheme in WEB:
            content_at(source)  # whose errors say more than OpenCV's
        self._capture = self._connected()
        if not self._capture.isOpened():
            if isinstance(source, int):
                raise NotFoundError(f"cannot open {self.name}: expected the number of a connected camera, from 0")
            raise ImageError(
                f"cannot open the stream {self.name}: there was no answer in {OPEN_MS / 1000:g} s, or none that FFmpeg "
                "reads: check the address, the user and password, and the network"
            )
        self.fps = self._declared_fps()

    @property
    def dropped(self) -> int:
        """The number of frames that a newer one replaced before a result was asked for."""
        return self._offered - self._taken

    def close(self) -> None:
        """End the stream: the iterator over its frames stops, if there is one. Any thread may call it."""
        self._closed.set()
        if self._newest is not None:
            self._newest.finish()

    def frames(
        self, skip: Skip | None = None, *, max_pixels: int = MAX_PIXELS, reconnect: int = RECONNECT, every: int = 1
    ) -> Iterator[Frame]:
        """Yield the newest frame whenever one is asked for, until the stream ends or is closed.

        Frames are numbered as they come, so dropped ones are gaps. ``reconnect``: how many times in a row a stream that
        broke off is opened again; 0 takes the first break as its end. ``every``: only every Nth frame counts.

        Raises:
            ImageError: a frame has more than ``max_pixels``; no frame came at all; or the stream broke off and did not
                come back, and ``skip`` is None.
        """
        newest = self._newest = _Newest()
        reader = threading.Thread(
            target=self._read, args=(newest, reconnect, every), daemon=True, name=f"reader {self.name}"
        )
        reader.start()
        _readers[reader] = self
        try:
            while True:
                start = time.perf_counter()
                frame = newest.take()
                if frame is None:
                    break
                image, number, at = frame
                check_pixels((image.shape[0], image.shape[1]), self.name, max_pixels)
                self._taken += 1
                ms = (time.perf_counter() - start) * 1e3
                yield Frame(image, self.name, number, ms, keep=True, time=at)
        finally:
            self._closed.set()
            reader.join(LAST_WAIT)  # it ends with its read, which has a limit of its own
        if newest.error is None:
            return
        if skip is None or not isinstance(newest.error, DeployError):
            raise newest.error
        skip(newest.error)

    def _connected(self) -> cv2.VideoCapture:
        if isinstance(self._source, int):
            return cv2.VideoCapture(self._source)
        return capture_at(self._source)

    def _read(self, newest: _Newest, reconnect: int, every: int) -> None:
        """Read until the end: the work of the thread, which alone touches the capture from here on."""
        failures = 0
        try:
            while not self._closed.is_set():
                more, image = read_frame(self._capture)
                if more:
                    if self.received % every == 0:
                        newest.put(image, self.received)
                        self._offered += 1
                    self.received += 1
                    failures = 0
                    continue
                self._capture.release()
                if self._is_over(reconnect):
                    break
                if failures == reconnect:
                    tries = f"{reconnect} time{'s' * (reconnect != 1)}"
                    raise ImageError(
                        f"{self.name} broke off after {self.received:,} frames and did not come back when it was "
                        f"opened again {tries}: check the network, or raise --reconnect (reconnect=)"
                    )
                self._wait(failures, reconnect)
                failures += 1
                if not self._closed.is_set():
                    self._capture = self._connected()
            if not self.received and not self._closed.is_set():
                raise ImageError(f"{self.name} was opened, but none of its frames could be decoded")
        except Exception as e:  # raised where the frames are asked for
            newest.error = e
        finally:
            newest.finish()  # first: whoever waits must not hang on a capture that does not close
            self._capture.release()

    def _is_over(self, reconnect: int) -> bool:
        """Return whether a stream that gives no more frames has ended, rather than broken off."""
        if reconnect == 0 or self._closed.is_set():
            return True
        return isinstance(self._source, Address) and self._source.is_playlist and is_finished(self._source)

    def _wait(self, failures: int, reconnect: int) -> None:
        pause = min(FIRST_PAUSE * 2**failures, LONGEST_PAUSE)
        _log.warning(
            "%s broke off after %s frames: it is opened again in %g s (%d of %d)",
            self.name, f"{self.received:,}", pause, failures + 1, reconnect,
        )  # fmt: skip
        self._closed.wait(pause)


_readers: weakref.WeakKeyDictionary[threading.Thread, Live] = weakref.WeakKeyDictionary()


def _end_readers() -> None:
    """End what is read before the interpreter ends, which would end the thread within OpenCV and abort the process."""
    open_ones = list(_readers.items())
    for _, source in open_ones:
        source.close()
    until = time.monotonic() + AT_EXIT
    for reader, _ in open_ones:
        reader.join(max(0.0, until - time.monotonic()))


atexit.register(_end_readers)


class _Newest:
    """One place for the newest frame: its image, its number, and when it came (seconds since the epoch)."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self._ready = threading.Condition()
        self._frame: tuple[Array, int, float] | None = None
        self._finished = False

    def put(self, image: Array, number: int) -> None:
        """Replace the frame that waits, if there is one."""
        with self._ready:
            self._frame = (image, number, time.time())
            self._ready.notify()

    def take(self) -> tuple[Array, int, float] | None:
        """Wait for a frame and take it; None: there will be no more."""
        with self._ready:
            while self._frame is None and not self._finished:
                self._ready.wait(LONGEST_WAIT)  # in pieces, so that a Ctrl-C that another thread was given is seen
            frame, self._frame = self._frame, None
            return frame

    def finish(self) -> None:
        """Tell that no frame follows."""
        with self._ready:
            self._finished = True
            self._ready.notify()
