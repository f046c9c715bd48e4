"""What the results of every task have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import cv2

from deploykit.errors import OutputError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import write_atomic
from deploykit.runtime.images.reading import as_bgr, read_image

__all__ = ["ImageResult", "encode_image"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageResult(ABC):
    """What a network says of one image.

    Attributes:
        size: the source image's (height, width).
        name: what the image is called: its file, or the video's.
        frame: the number of a video's frame, from 0.
        timings: milliseconds per stage: ``read`` (file and decoding), ``letterbox`` or ``prepare`` (canvas and input),
            ``inference`` (the session's call, divided by the images in it), ``postprocess``.
        image: the source image, BGR ``uint8 (height, width, 3)``, as long as it is kept; not copied.
        own_suffix: of the file that :meth:`save` writes by itself; None: what is drawn is all there is to write.
        has_map: whether there is a label map to write.
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
        """What there is to see, as a new BGR ``uint8 (H, W, 3)``.

        Args:
            image: the source image; None takes the kept one, or reads the file ``name`` again.

        Raises:
            UsageError: the image is needed and not available, or has another size.
            ImageError, NotFoundError: the file cannot be read again.
        """

    @abstractmethod
    def summary(self) -> str:
        """What was found, as a few words of one line."""

    @abstractmethod
    def _about(self) -> dict[str, Any]:
        """What :meth:`to_dict` says beyond what all of them say."""

    @property
    def left_out(self) -> bool:
        """Whether there was more than the postprocess looks at."""
        return False

    def counts(self) -> dict[str, int]:
        """How many objects of each class there are, by name; empty where no objects are looked for."""
        return {}

    def save(self, path: str | os.PathLike[str], image: Array | None = None) -> Path:
        """Write what :meth:`draw` gives; the format follows from the suffix (``.jpg``, ``.png``, ``.webp``, ...).

        Raises:
            OutputError: the format is not one that is written, or the place is not writable or full.
        """
        file = Path(path)
        write_atomic(file, encode_image(self.draw(image), file))
        return file

    def to_dict(self) -> dict[str, Any]:
        """Everything but pixels, ready for ``json.dumps``."""
        return {
            "name": self.name,
            "frame": self.frame,
            "size": list(self.size),
            **self._about(),
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings.items()},
        }

    def _source(self, image: Array | None) -> Array:
        """The source image: the given one, the kept one, or the file read again."""
        image = self.image if image is None else image
        if image is None and (not self.name or self.frame is not None):
            raise UsageError("this result no longer has its image: pass it as draw(image)")
        source = read_image(self.name) if image is None else as_bgr(image)
        if source.shape[:2] != self.size:
            raise UsageError(
                f"the result is of an image of {self.size} (height, width), but this one is {source.shape[:2]}"
            )
        return source


def encode_image(image: Array, path: Path) -> bytes:
    """An image in the format of ``path``'s suffix.

    Raises:
        OutputError: OpenCV writes no such format, or not an image of this size.
    """
    try:
        done, data = cv2.imencode(path.suffix.lower() or ".", image)
    except cv2.error as e:
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise OutputError(f"OpenCV does not write {size} as {path.name}: choose .jpg, .png or .webp") from e
    if not done:
        raise OutputError(f"OpenCV could not encode {path.name}")
    return data.tobytes()
