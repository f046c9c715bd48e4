"""The base of the results of every task."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2

from deploykit.atomic import write_atomic
from deploykit.errors import OutputError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.reading import as_bgr, read_image

__all__ = ["ImageResult", "encode_image"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageResult(ABC):
    """The result for one image.

    Attributes:
        size: the source image's (height, width).
        name: the file of the image or the video.
        frame: the frame number in a video, from 0.
        timings: milliseconds per stage: ``read`` (file and decoding), ``letterbox`` or ``prepare`` (canvas and input),
            ``inference`` (the session's call, divided by the images in it), ``postprocess``.
        image: the source image, BGR ``uint8 (height, width, 3)``, while it is kept; not copied.
        own_suffix: the suffix of the file that :meth:`save` writes by itself; None: the drawn image is the only file.
        has_map: whether the result has a label map to write.
    """

    size: tuple[int, int]
    name: str = ""
    frame: int | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    image: Array | None = field(default=None, repr=False)

    own_suffix: ClassVar[str | None] = None
    has_map: ClassVar[bool] = False

    @abstractmethod
    def draw(self, image: Array | None = None) -> Array:
        """Draw the result as a new BGR ``uint8 (H, W, 3)``.

        Args:
            image: the source image; None: the kept one, or the file ``name`` read again.

        Raises:
            UsageError: the image is required but not available, or has another size.
            ImageError, NotFoundError: the file cannot be read again.
        """

    @abstractmethod
    def summary(self) -> str:
        """Return the result in a few words on one line."""

    @abstractmethod
    def _about(self) -> dict[str, Any]:
        """Return the entries that this kind adds to :meth:`to_dict`."""

    @property
    def left_out(self) -> bool:
        """Whether the postprocess left out candidates."""
        return False

    def counts(self) -> dict[str, int]:
        """Return the number of objects per class, by name; empty if the task finds no objects."""
        return {}

    def save(self, path: str | os.PathLike[str], image: Array | None = None) -> Path:
        """Write the drawn image; the format follows from the suffix (``.jpg``, ``.png``, ``.webp``, ...).

        Raises:
            OutputError: the format is not one that is written, or the place is not writable or full.
        """
        file = Path(path)
        write_atomic(file, encode_image(self.draw(image), file), durable=False)
        return file

    def to_dict(self) -> dict[str, Any]:
        """Return everything but pixels, ready for ``json.dumps``."""
        return {
            "name": self.name,
            "frame": self.frame,
            "size": list(self.size),
            **self._about(),
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings.items()},
        }

    def _source(self, image: Array | None) -> Array:
        """Return the source image: the given one, the kept one, or the file read again."""
        image = self.image if image is None else image
        if image is None and (not self.name or self.frame is not None):
            raise UsageError("this result does not have its image any more: pass it as draw(image)")
        source = read_image(self.name) if image is None else as_bgr(image)
        if source.shape[:2] != self.size:
            raise UsageError(
                f"the result is for an image of {self.size} (height, width), but this one has {source.shape[:2]}"
            )
        return source


def encode_image(image: Array, path: Path) -> bytes:
    """Encode an image in the format of ``path``'s suffix.

    Raises:
        OutputError: OpenCV cannot write this format, or an image of this size in it.
    """
    try:
        done, data = cv2.imencode(path.suffix.lower() or ".", image)
    except cv2.error as e:
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise OutputError(f"OpenCV cannot write {size} as {path.name}: choose .jpg, .png or .webp") from e
    if not done:
        raise OutputError(f"OpenCV could not encode {path.name}")
    return data.tobytes()
