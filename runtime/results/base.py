"""The base of the results of every task."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Unpack

import cv2

from deploykit.atomic import write_atomic
from deploykit.errors import OutputError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.pixels import as_bgr
from deploykit.runtime.images.reading import read_image
from deploykit.runtime.options import DrawKeywords
from deploykit.runtime.results.tables import Library, Rows, csv_text, data_frame, encoded

__all__ = ["SCHEMA", "ImageResult", "encode_image"]

SCHEMA = 1
"""The version of :meth:`ImageResult.to_dict`, which ``deploykit/assets/predict.schema.json`` describes. A member that
goes or changes its meaning counts it up, a new one does not."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ImageResult(ABC):
    """The result for one image.

    Attributes:
        size: the source image's (height, width).
        name: the file of the image or the video.
        frame: the frame number in a video, from 0.
        time: when a frame of a camera or a live stream came, in seconds since the epoch.
        timings: milliseconds per stage: ``read`` (file and decoding), ``letterbox`` or ``prepare`` (canvas and input),
            ``inference`` (the session's call, divided by the images in it), ``postprocess``.
        image: the source image, BGR ``uint8 (height, width, 3)``, while it is kept; not copied.
        own_suffix: the suffix of the file that :meth:`save` writes by itself; None: the drawn image is the only file.
        has_map: whether the result has a label map to write.
        has_table: whether :meth:`to_csv` and :meth:`to_df` give rows.
    """

    size: tuple[int, int]
    name: str = ""
    frame: int | None = None
    time: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    image: Array | None = field(default=None, repr=False)

    own_suffix: ClassVar[str | None] = None
    has_map: ClassVar[bool] = False
    has_table: ClassVar[bool] = False

    @abstractmethod
    def draw(self, image: Array | None = None, **options: Unpack[DrawKeywords]) -> Array:
        """Draw the result as a new BGR ``uint8 (H, W, 3)`` of the source's size.

        Args:
            image: the source image; None: the kept one, or the file ``name`` read again.
            **options: fields of :class:`deploykit.runtime.options.DrawOptions`: ``line_width``, ``labels``, ``conf``,
                ``font``.

        Raises:
            UsageError: the image is required but not available, or has another size; or an option is not possible.
            ImageError, NotFoundError: the file cannot be read again; or the font does not exist.
        """

    @abstractmethod
    def summary(self) -> str:
        """Return the result in a few words on one line."""

    @abstractmethod
    def _about(self) -> dict[str, Any]:
        """Return the entries that this kind adds to :meth:`to_dict`."""

    def _table(self) -> Rows:
        """Return the rows of :meth:`to_csv` without the columns ``image`` and ``frame``, where there are rows.

        Raises:
            UsageError: this kind has none.
        """
        raise UsageError(
            f"a {type(self).__name__} is an image and has no rows of a table: save() writes it, and to_dict() "
            "describes it"
        )

    def __repr__(self) -> str:
        frame = "" if self.frame is None else f" frame {self.frame}"
        name = f" {Path(self.name).name}" if self.name else ""
        return f"<{type(self).__name__}{name}{frame} {self.size[1]}x{self.size[0]}: {self.summary()}>"

    @property
    def left_out(self) -> bool:
        """Whether the postprocess left out candidates."""
        return False

    def counts(self) -> dict[str, int]:
        """Return the number of objects per class, by name; empty if the task finds no objects."""
        return {}

    def save(self, path: str | os.PathLike[str], image: Array | None = None, **options: Unpack[DrawKeywords]) -> Path:
        """Write the drawn image; the format follows from the suffix (``.jpg``, ``.png``, ``.webp``, ...). ``options``
        as for :meth:`draw`.

        Raises:
            OutputError: the format is not one that is written, or the place is not writable or full.
        """
        file = Path(path)
        write_atomic(file, encode_image(self.draw(image, **options), file), durable=False)
        return file

    def to_dict(self) -> dict[str, Any]:
        """Return everything but pixels, ready for ``json.dumps``: what a line of ``predict --json`` is."""
        return {
            "schema": SCHEMA,
            "name": self.name,
            "frame": self.frame,
            **({} if self.time is None else {"time": round(self.time, 3)}),
            "size": list(self.size),
            **self._about(),
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings.items()},
        }

    def to_png(self) -> bytes | None:
        """Return what the network gives as an image, as a PNG file; None where that is no image.

        A label map has the class numbers in 8 bits, or in 16 where one is over 255, and no palette.
        """
        return None

    def to_csv(self, path: str | os.PathLike[str] | None = None, *, header: bool = True) -> str:
        """Return the result as comma-separated values, and write them to ``path`` if there is one.

        The columns are the same for every image of a model, and docs/predict.md lists them. A result without objects
        has the header alone.

        Args:
            path: the file; UTF-8.
            header: begin with the names of the columns.

        Raises:
            UsageError: this kind of result has no table. OutputError: the place is not writable or full.
        """
        text = csv_text(self._rows(), header=header)
        if path is not None:
            write_atomic(Path(path), encoded(text))
        return text

    def to_df(self, library: Library | None = None) -> Any:
        """Return the rows of :meth:`to_csv` as a data frame.

        Args:
            library: ``pandas`` or ``polars``; None: pandas if it is installed, else polars.

        Raises:
            UsageError: this kind of result has no table. MissingDependencyError: the library is not installed.
        """
        return data_frame(self._rows(), library)

    def _rows(self) -> Rows:
        return self._table().after({"image": self.name, "frame": self.frame})

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
