"""Where images come from: files, folders, lists, videos and cameras, all as a stream of frames."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from deploykit.errors import DeployError, ImageError, NotFoundError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import close_matches, exists, is_folder
from deploykit.runtime.images.reading import RAW_SUFFIXES, ImageSource, read_image

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Frame",
    "Images",
    "Skip",
    "Video",
    "images_in",
    "kind_of",
    "open_source",
]

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
VIDEO_SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
}  # fmt: skip

Skip = Callable[[DeployError], None]
"""Told of an image that cannot be read, which is then left out."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a source: BGR ``uint8 (H, W, 3)``, its file's or video's name, a video's frame number from 0."""

    image: Array
    name: str
    number: int | None
    read_ms: float
    keep: bool


@dataclass(frozen=True)
class Images:
    """Images in files, in encoded bytes or in arrays, one after the other.

    ``keep_files``: results hold on to images that were read from files. A list of results does without (it would
    fill the memory, and a file can be read again); a stream keeps them. ``folder``: whose images they are, if they
    were not named one by one.
    """

    items: tuple[ImageSource, ...]
    keep_files: bool = True
    folder: Path | None = None
    live = False

    @property
    def total(self) -> int:
        """How many images there are."""
        return len(self.items)

    def frames(
        self, skip: Skip | None = None, *, read: Callable[[ImageSource], Array] | None = None
    ) -> Iterator[Frame]:
        """Read one image after the other; ``read`` does so in place of :func:`read_image`.

        Raises:
            ImageError, NotFoundError: an image cannot be read, and there is no ``skip`` to be told.
        """
        for item in self.items:
            in_file = isinstance(item, (str, os.PathLike))
            start = time.perf_counter()
            try:
                image = (read or read_image)(item)
            except DeployError as e:
                if skip is None:
                    raise
                skip(e)
                continue
            ms = (time.perf_counter() - start) * 1e3
            name = os.fspath(item) if isinstance(item, (str, os.PathLike)) else ""
            yield Frame(image, name, None, ms, keep=self.keep_files or not in_file)


class Video:
    """A video file, or a camera by its number; can be read once.

    Attributes:
        name: the file, or ``camera 0``.
        live: a camera: frames must not wait for each other, and there is no end.
        total: the frames that the file announces; None where it does not, and for a camera.
        fps: frames a second; 30 where nothing is announced.

    Raises:
        ImageError: the file is not a video that OpenCV reads.
        NotFoundError: there is no such file or camera.
    """

    def __init__(self, source: Path | int) -> None:
        self.live = isinstance(source, int)
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
        if not self._capture.isOpened():
            if isinstance(source, int):
                raise NotFoundError(f"{self.name} does not open: expected the number of a connected camera, from 0")
            raise ImageError(f"{source} is not a video that OpenCV reads: convert it to MP4 (H.264), or copy it again")
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.total = count if count > 0 and not self.live else None
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps < 1000 else 30.0

    def frames(self, skip: Skip | None = None) -> Iterator[Frame]:
        """Decode one frame after the other; the file is closed after the last one.

        Raises:
            ImageError: not a single frame could be decoded.
        """
        number = 0
        try:
            while True:
                start = time.perf_counter()
                more, image = self._capture.read()
                ms = (time.perf_counter() - start) * 1e3
                if not more:
                    break
                yield Frame(image, self.name, number, ms, keep=True)
                number += 1
        finally:
            self._capture.release()
        if number == 0:
            error = ImageError(f"{self.name} opened, but not one frame of it could be decoded")
            if skip is None:
                raise error
            skip(error)


def kind_of(source: str | os.PathLike[str] | int) -> Literal["image", "folder", "video", "camera"]:
    """What a source is: a number is a camera (unless a file has that name), the rest goes by folder and suffix."""
    if isinstance(source, int):
        return "camera"
    path = Path(source)
    if is_folder(path):
        return "folder"
    if os.fspath(source).isdecimal() and not exists(path):
        return "camera"
    return "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"


def open_source(source: ImageSource | int | Sequence[ImageSource], *, raw: bool = False) -> Images | Video:
    """Whatever a :class:`deploykit.Predictor` takes, as something that has ``frames()``.

    A folder gives its own images (not those of folders in it) in the order of their names; ``raw``: also those that
    are RAW files.

    Raises:
        NotFoundError: there is no such file, folder or camera.
        ImageError: a folder without images, or a video that does not open.
    """
    if isinstance(source, (bytes, np.ndarray)):
        return Images((source,))
    if isinstance(source, (str, os.PathLike, int)):
        return _open_named(source, raw)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return Images(tuple(source), keep_files=False)
    raise UsageError(
        f"a source is a path, encoded bytes, a BGR array, a camera's number or a list, got {type(source).__name__}"
    )


def _open_named(source: str | os.PathLike[str] | int, raw: bool) -> Images | Video:
    kind = kind_of(source)
    if isinstance(source, int) or kind == "camera":
        return Video(int(os.fspath(source)) if not isinstance(source, int) else source)
    path = Path(source)
    if kind == "folder":
        return Images(tuple(images_in(path, raw=raw)), folder=path)
    if not exists(path):
        raise NotFoundError(
            f"an image, video or folder was expected at {path}, which does not exist{close_matches(path)}"
        )
    return Video(path) if kind == "video" else Images((path,))


def images_in(folder: Path, *, raw: bool = False) -> list[Path]:
    """The folder's own images, in the order of their names; ``raw``: also RAW files.

    Raises:
        ImageError: it cannot be listed, or holds none.
    """
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file())
    except OSError as e:
        raise ImageError(f"cannot list the folder {folder}: {e.strerror or e}") from e
    suffixes = IMAGE_SUFFIXES | RAW_SUFFIXES if raw else IMAGE_SUFFIXES
    images = [p for p in files if p.suffix.lower() in suffixes]
    if not images:
        found = f"{len(files)} other file{'s' * (len(files) != 1)}" if files else "no file"
        raise ImageError(f"the folder {folder} holds no image (.jpg, .png, .webp, ...) but {found}")
    return images
