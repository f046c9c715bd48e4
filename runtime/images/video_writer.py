"""Write drawn frames to an MP4 video."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2

from deploykit.atomic import become_file, destination, sync
from deploykit.errors import OutputError, os_errors_as_output_errors
from deploykit.partials import partial_file
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.opencv_path import opencv_path

__all__ = ["Mp4Writer"]

ROOM = 1 << 16  # bytes, less than a frame may take
CODEC = "mp4v"  # MPEG-4 part 2: every OpenCV wheel can encode it, none can encode H.264


class Mp4Writer:
    """An MP4 file that appears under its name at the end of the context.

    An error in the context leaves no file. Ctrl-C and SIGTERM leave the frames that were written until then.

    Args:
        path: the file, ``.mp4``.
        fps: frames per second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path = self._place = path
        self._partial: Path | None = None
        self._stack = contextlib.ExitStack()
        self._fps = fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._frames = 0

    def write(self, image: Array) -> None:
        """Append one frame, BGR ``uint8 (H, W, 3)``; the first frame sets the size.

        Raises:
            OutputError: the path is not writable, or a frame differs in size from the first one.
        """
        size = (image.shape[1], image.shape[0])
        if self._writer is None:
            with opencv_path(self._begin()) as name:
                self._writer = cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*CODEC), self._fps, size)
            self._size = size
            if not self._writer.isOpened():
                self._check_room()
                raise OutputError(
                    f"OpenCV cannot encode {size[0]} x {size[1]} pixels as {CODEC} video for {self._path}"
                )
        if size != self._size:
            raise OutputError(f"{self._path} expects frames of {self._size} (width, height), got one of {size}")
        self._writer.write(image)
        self._frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._writer is not None:
                self._writer.release()
            stopped = isinstance(error, KeyboardInterrupt)
            if self._partial is not None and (error is None or (stopped and self._frames)):
                self._finish(self._partial, stopped=stopped)

    def _begin(self) -> Path:
        """Create the file that grows, because OpenCV would not report why it cannot write."""
        with os_errors_as_output_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            place = destination(self._path)
            if place is None:
                raise OutputError(f"cannot write {self._path}: a video needs a file; this is a device or a pipe")
            self._place = place
            self._partial = self._stack.enter_context(partial_file(place))
        return self._partial

    def _check_room(self) -> None:
        """Raise the system's own error if nothing more can be written; OpenCV does not tell it."""
        with os_errors_as_output_errors(self._path), partial_file(self._place) as probe:
            probe.write_bytes(bytes(ROOM))
            sync(probe)

    def _finish(self, partial: Path, *, stopped: bool) -> None:
        """Count the frames in the file (OpenCV does not report a full disk), then rename it."""
        with opencv_path(partial) as name:
            check = cv2.VideoCapture(name)
        found = int(check.get(cv2.CAP_PROP_FRAME_COUNT)) if check.isOpened() else 0
        check.release()
        if found != self._frames and not (stopped and found > self._frames):  # one that was not counted any more
            self._check_room()
            raise OutputError(f"{self._path} holds only {found} of {self._frames} frames: is the disk full?")
        with os_errors_as_output_errors(self._path):
            sync(partial)
            become_file(partial, self._place)
