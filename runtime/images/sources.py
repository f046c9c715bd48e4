"""Image sources: files, folders, lists, videos and cameras, each as a stream of frames."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from deploykit.errors import DeployError, ImageError, NotFoundError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import exists, is_folder, similar_names
from deploykit.runtime.images.opencv_path import opencv_path
from deploykit.runtime.images.reading import RAW_SUFFIXES, ImageSource, check_pixels, read_image
from deploykit.runtime.options import MAX_PIXELS

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Frame",
    "Images",
    "Skip",
    "Video",
    "kind_of",
    "list_images",
    "open_source",
    "passed_over",
]

IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
VIDEO_SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv",
}  # fmt: skip

MOST_FAILURES = 1000  # frames in a row that cannot be decoded; what follows is given up
SPARE_FRAMES = 2  # that encoders and edit lists leave out at the ends
EXACT_COUNTS = {".3gp", ".avi", ".m4v", ".mov", ".mp4"}  # which list their frames; others are counted by their duration
NAMED = 5  # names of each kind of what is passed over

_log = logging.getLogger(__name__)

Skip = Callable[[DeployError], None]
"""Called with the error of an unreadable image, which is then skipped."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a source: BGR ``uint8 (H, W, 3)``, the name of its file or video, and its frame number from 0."""

    image: Array
    name: str
    number: int | None
    read_ms: float
    keep: bool


@dataclass(frozen=True)
class Images:
    """Images in files, encoded bytes or arrays, in order.

    ``keep_files``: whether results keep the images that were read from files. A list of results does not: it would
    fill the memory, and a file can be read again. A stream does. ``folder``: the folder of the images, if they were
    not named one by one. ``unturned``: files that are read as stored, not turned by their EXIF orientation.
    """

    items: tuple[ImageSource, ...]
    keep_files: bool = True
    folder: Path | None = None
    unturned: frozenset[Path] = frozenset()
    live = False

    @property
    def total(self) -> int:
        """The number of images."""
        return len(self.items)

    def frames(self, skip: Skip | None = None, *, read: Callable[..., Array] = read_image) -> Iterator[Frame]:
        """Read the images one by one; ``read`` is :func:`read_image`, perhaps with arguments of its own.

        Raises:
            ImageError, NotFoundError: an image cannot be read, and ``skip`` is None.
        """
        for item in self.items:
            in_file = isinstance(item, (str, os.PathLike))
            start = time.perf_counter()
            try:
                image = read(item, turn=not (in_file and item in self.unturned))
            except DeployError as e:
                if skip is None:
                    raise
                skip(e)
                continue
            ms = (time.perf_counter() - start) * 1e3
            name = os.fspath(item) if isinstance(item, (str, os.PathLike)) else ""
            yield Frame(image, name, None, ms, keep=self.keep_files or not in_file)


class Video:
    """A video file, or a camera by its number; it can be read once.

    Attributes:
        name: the file, or ``camera 0``.
        live: True for a camera, whose frames must not wait for each other and never end.
        total: the number of frames that the file declares; None if it declares none, and for a camera.
        fps: frames per second; 30 if none is declared.

    Raises:
        ImageError: OpenCV cannot read the file as a video.
        NotFoundError: the file or the camera does not exist.
    """

    def __init__(self, source: Path | int) -> None:
        self.live = isinstance(source, int)
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        if isinstance(source, int):
            self._capture = cv2.VideoCapture(source)
        else:
            if exists(source) and not source.is_file():  # a pipe is waited for without an end
                raise ImageError(
                    f"expected a video file, but {source} is a pipe or a device: copy it into a file first"
                )
            with opencv_path(source) as name:
                self._capture = cv2.VideoCapture(name)
        if not self._capture.isOpened():
            if isinstance(source, int):
                raise NotFoundError(f"cannot open {self.name}: expected the number of a connected camera, from 0")
            raise ImageError(
                f"{source} is not a video that OpenCV can read: convert it to MP4 (H.264), or copy it again"
            )
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.total = count if count > 0 and not self.live else None
        fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = fps if 0 < fps < 1000 else 30.0

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
                more, image = self._capture.read()
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
        if self.live or self.total is None:
            return 0
        return min(max(self.total - number, 0), MOST_FAILURES)

    def _missing(self, number: int, gaps: int) -> str:
        """Say what a video lacks after its last frame; empty: nothing, or no more than an estimate may be wrong."""
        if number == 0:
            return f"{self.name} was opened, but none of its frames could be decoded"
        if self.live or self.total is None:
            return ""
        short = self.total - number
        if not gaps and short <= max(SPARE_FRAMES, self.total // 50):
            return ""
        told = f"{self.name} declares {self.total:,} frames, of which {number:,} could be decoded"
        if not gaps and Path(self.name).suffix.lower() not in EXACT_COUNTS:
            _log.warning("%s: its declared length may be an estimate, or its end is missing", told)
            return ""
        return f"{told}: the others are damaged or missing; copy it again"


def kind_of(source: str | os.PathLike[str] | int) -> Literal["image", "folder", "video", "camera"]:
    """Return the kind of a source.

    A number is a camera, unless a file has that name. For everything else the file system and the suffix decide.
    """
    if isinstance(source, int):
        return "camera"
    path = Path(source)
    if is_folder(path):
        return "folder"
    if os.fspath(source).isdecimal() and not exists(path):
        return "camera"
    return "video" if path.suffix.lower() in VIDEO_SUFFIXES else "image"


def open_source(source: ImageSource | int | Sequence[ImageSource], *, raw: bool = False) -> Images | Video:
    """Open anything that a :class:`deploykit.Predictor` accepts, as an object with ``frames()``.

    A folder provides its own images (not those of its subfolders) in the order of their names; ``raw`` adds RAW files.

    Raises:
        NotFoundError: the file, folder or camera does not exist.
        ImageError: a folder holds no image, or a video cannot be opened.
    """
    if isinstance(source, (bytes, np.ndarray)):
        return Images((source,))
    if isinstance(source, (str, os.PathLike, int)):
        return _open_named(source, raw)
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return Images(tuple(source), keep_files=False)
    raise UsageError(
        f"a source must be a path, encoded bytes, a BGR array, a camera number or a list, got {type(source).__name__}"
    )


def _open_named(source: str | os.PathLike[str] | int, raw: bool) -> Images | Video:
    kind = kind_of(source)
    if isinstance(source, int) or kind == "camera":
        return Video(int(os.fspath(source)) if not isinstance(source, int) else source)
    path = Path(source)
    if kind == "folder":
        return Images(tuple(list_images(path, raw=raw)), folder=path)
    if not exists(path):
        raise NotFoundError(
            f"an image, video or folder was expected at {path}, which does not exist{similar_names(path)}"
        )
    return Video(path) if kind == "video" else Images((path,))


def list_images(folder: Path, *, raw: bool = False) -> list[Path]:
    """Return the images of a folder, without its subfolders, in the order of their names; ``raw`` adds RAW files.

    Raises:
        ImageError: the folder cannot be listed, or holds no image.
    """
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file())
    except OSError as e:
        raise ImageError(f"cannot list the folder {folder}: {e.strerror or e}") from e
    suffixes = IMAGE_SUFFIXES | RAW_SUFFIXES if raw else IMAGE_SUFFIXES
    images = [p for p in files if p.suffix.lower() in suffixes]
    if not images:
        found = f"only {len(files)} other file{'s' * (len(files) != 1)}" if files else "no file at all"
        raise ImageError(f"the folder {folder} holds no image (.jpg, .png, .webp, ...), {found}")
    return images


def passed_over(folder: Path, images: Collection[object]) -> str:
    """Return what a folder holds besides ``images``, as words with counts and names; empty if there is nothing else.

    Hidden files are not told, unless their names are those of images.
    """
    kinds: dict[str, list[str]] = {
        "sub-folder": [], "video": [], "RAW file": [], "broken link": [], "unreadable file": [], "other file": []
    }  # fmt: skip
    taken = set(map(str, images))
    try:
        left = sorted(path for path in folder.iterdir() if str(path) not in taken)
    except OSError:
        return ""
    for path in left:
        kinds[_kind_passed_over(path)].append(path.name)
    told = ((kind, [name for name in names if not name.startswith(".")]) for kind, names in kinds.items())
    return ", ".join(
        f"{len(names)} {kind}{'s' * (len(names) > 1)} ({', '.join(names[:NAMED])}"
        f"{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''})"
        for kind, names in told
        if names
    )


def _kind_passed_over(path: Path) -> str:
    if is_folder(path):
        return "sub-folder"
    if not exists(path):
        return "broken link" if path.is_symlink() else "unreadable file"
    suffix = path.suffix.lower()
    return "video" if suffix in VIDEO_SUFFIXES else "RAW file" if suffix in RAW_SUFFIXES else "other file"
