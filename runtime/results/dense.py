"""Results for whole images: the class, features, the class of each pixel, or the restored image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Unpack

import cv2
import numpy as np

from deploykit.atomic import write_atomic
from deploykit.errors import OutputError, UsageError, import_extra
from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.fonts import class_text
from deploykit.runtime.drawing.label_map import draw_label_map, save_label_map, shares
from deploykit.runtime.drawing.panel import Line, draw_lines, draw_panel
from deploykit.runtime.images.pixels import as_bgr
from deploykit.runtime.options import DrawKeywords, DrawOptions
from deploykit.runtime.raw.dng import dng_bytes
from deploykit.runtime.raw.mosaic import RawImage
from deploykit.runtime.results.base import ImageResult, encode_image
from deploykit.runtime.results.objects import short
from deploykit.runtime.results.tables import Rows, import_package

__all__ = ["Classification", "Features", "LabelMap", "RestoredImage", "RestoredRaw"]

RAW_FILES = {".dng"}
SHOWN = 6  # shares of a label map in its summary
DEEP = {".png", ".tif", ".tiff"}  # formats with 16 bits per channel


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Classification(ImageResult):
    """The best classes of an image, the best first.

    Attributes:
        labels: ``(k,)`` int64, positions in ``classes``.
        scores: ``(k,)`` float32, probabilities.
        classes: the class names; may be empty.
        num_classes: how many classes the network knows; 0: not said.
    """

    has_table: ClassVar[bool] = True

    labels: Array
    scores: Array
    classes: tuple[str, ...] = ()
    num_classes: int = 0

    def __post_init__(self) -> None:
        labels, scores = np.asarray(self.labels, np.int64), np.asarray(self.scores, np.float32)
        if labels.ndim != 1 or labels.shape != scores.shape or not len(labels):
            raise UsageError(f"labels and scores must have the same shape (k,), got {labels.shape} and {scores.shape}")
        if not np.isfinite(scores).all():
            raise UsageError("scores must be finite numbers, got NaN or infinity")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "scores", scores)

    def class_name(self, label: int) -> str:
        """Return the name of a label, or its number if the classes have no names."""
        return self.classes[label] if label < len(self.classes) else str(label)

    @property
    def named(self) -> list[tuple[str, float]]:
        """Return names and probabilities, the best first; two classes may share a name."""
        return [(self.class_name(int(label)), float(s)) for label, s in zip(self.labels, self.scores, strict=True)]

    def draw(self, image: Array | None = None, **options: Unpack[DrawKeywords]) -> Array:
        """See :meth:`ImageResult.draw`: the image with the classes and bars of their probabilities on it."""
        chosen, source, lines = DrawOptions(**options), self._source(image), []
        for label, score in zip(self.labels, self.scores, strict=True):
            text, typeface = class_text(self.class_name(int(label)), int(label), chosen.font)
            line = f"{text} {score:.3f}" if chosen.conf else text
            lines.append(Line(line, typeface, bar=float(score) if chosen.conf else None))
        return draw_panel(source, lines if chosen.labels else [], steady=self.frame is not None)

    def summary(self) -> str:
        """See :meth:`ImageResult.summary`."""
        return ", ".join(f"{name} {score:.3f}" for name, score in self.named)

    def to_fiftyone(self) -> Any:
        """Return a ``fiftyone.Classification`` of the best class.

        Raises:
            MissingDependencyError: the package fiftyone is not installed.
        """
        name, score = self.named[0]
        return import_package("fiftyone").Classification(label=name, confidence=score)

    def _table(self) -> Rows:
        columns = {"rank": int, "label": int, "name": str, "score": float}
        entries = enumerate(zip(self.labels, self.named, strict=True))
        return Rows(columns, [[rank + 1, int(label), name, short(score)] for rank, (label, (name, score)) in entries])

    def _about(self) -> dict[str, Any]:
        entries = zip(self.labels, self.scores, strict=True)
        return {
            "classes": [
                {"label": int(label), "name": self.class_name(int(label)), "score": float(f"{score:.7g}")}
                for label, score in entries
            ]
        }


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Features(ImageResult):
    """The features of an image from a network without a head, to compare images or to train a head.

    Attributes:
        values: ``(D,)`` float32 from the network, without a unit and not normalised.
    """

    has_table: ClassVar[bool] = True

    values: Array

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float32)
        if values.ndim != 1 or not len(values):
            raise UsageError(f"the features of an image must have one axis, got the shape {values.shape}")
        if not np.isfinite(values).all():
            raise UsageError("features must be finite numbers, got NaN or infinity")
        object.__setattr__(self, "values", values)

    @property
    def length(self) -> float:
        """The Euclidean norm of the features."""
        return float(np.linalg.norm(self.values.astype(np.float64)))

    def similarity(self, other: Features) -> float:
        """Return the cosine similarity to the features of another image, -1 to 1; 0 if one of them is all zeros.

        Raises:
            UsageError: the numbers of features differ, so they are from different networks.
        """
        if self.values.shape != other.values.shape:
            raise UsageError(f"{len(self.values)} features cannot be compared with {len(other.values)}")
        lengths = self.length * other.length
        product = float(self.values.astype(np.float64) @ other.values)
        return product / lengths if lengths else 0.0

    def draw(self, image: Array | None = None, **options: Unpack[DrawKeywords]) -> Array:
        """See :meth:`ImageResult.draw`: the image with one line of text."""
        line = f"{len(self.values)} features, length {self.length:.4g}"
        return draw_lines(self._source(image), [line] if DrawOptions(**options).labels else [])

    def summary(self) -> str:
        """See :meth:`ImageResult.summary`."""
        return f"{len(self.values)} features, of length {self.length:.4g}"

    def _table(self) -> Rows:
        columns = {f"feature_{i}": float for i in range(len(self.values))}
        return Rows(columns, [[short(value) for value in self.values.tolist()]])

    def _about(self) -> dict[str, Any]:
        return {"features": [float(f"{value:.7g}") for value in self.values]}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class LabelMap(ImageResult):
    """The class of each pixel of the source image.

    Attributes:
        labels: ``(height, width)`` int32, positions in ``classes``.
        classes: the class names; may be empty.
        num_classes: how many classes the network knows; 0: not said.
    """

    has_map: ClassVar[bool] = True
    has_table: ClassVar[bool] = True

    labels: Array
    classes: tuple[str, ...] = ()
    num_classes: int = 0

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels, np.int32)
        if labels.shape != self.size:
            raise UsageError(f"a label map of an image of {self.size} has that shape, got {labels.shape}")
        object.__setattr__(self, "labels", labels)

    def class_name(self, label: int) -> str:
        """Return the name of a label, or its number if the classes have no names."""
        return self.classes[label] if label < len(self.classes) else str(label)

    def shares(self) -> dict[str, float]:
        """Return class name (or number) -> share of the image, largest first; classes with one name are added up."""
        found: dict[str, float] = {}
        for label, share in shares(self.labels).items():
            name = self.class_name(label)
            found[name] = found.get(name, 0.0) + share
        return found

    def draw(
        self,
        image: Array | None = None,
        *,
        alpha: float = 0.5,
        legend: bool = True,
        **options: Unpack[DrawKeywords],
    ) -> Array:
        """See :meth:`ImageResult.draw`: the image with the label map over it; ``alpha`` and ``legend`` as
        :func:`deploykit.runtime.drawing.label_map.draw_label_map`. ``labels=False`` leaves out the legend too."""
        chosen = DrawOptions(**options)
        return draw_label_map(
            self._source(image),
            self.labels,
            self.classes,
            alpha=alpha,
            legend=legend and chosen.labels,
            font=chosen.font,
            steady=self.frame is not None,
        )

    def save_map(self, path: str | os.PathLike[str]) -> Path:
        """Write the class numbers as an 8-bit PNG with a palette, which ``deploykit eval`` reads as ground truth.

        Raises:
            OutputError: the name does not end in ``.png``, or the place is not writable or full.
            MissingDependencyError: pillow is not installed.
        """
        file = Path(path)
        if file.suffix.lower() != ".png":
            raise OutputError(
                f"a label map is a PNG file, but {file.name} does not end in .png; labels is the array (H, W) itself"
            )
        save_label_map(file, self.labels, self.classes)
        return file

    def summary(self) -> str:
        """See :meth:`ImageResult.summary`: the largest shares."""
        found = list(self.shares().items())
        rest = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in found[:SHOWN]) + rest

    def to_fiftyone(self) -> Any:
        """Return a ``fiftyone.Segmentation`` whose mask is the label map; a data set names its values by
        ``mask_targets``.

        Raises:
            MissingDependencyError: the package fiftyone is not installed.
        """
        return import_package("fiftyone").Segmentation(mask=self.labels)

    def _table(self) -> Rows:
        columns = {"label": int, "name": str, "pixels": int, "share": float}
        labels, pixels = np.unique(self.labels, return_counts=True)
        order = np.argsort(-pixels, kind="stable")
        return Rows(
            columns,
            [
                [int(labels[i]), self.class_name(int(labels[i])), int(pixels[i]), short(pixels[i] / self.labels.size)]
                for i in order
            ],
        )

    def to_png(self) -> bytes:
        """See :meth:`ImageResult.to_png`: the class numbers."""
        deep = self.labels.max() > 255
        return encode_image(self.labels.astype(np.uint16 if deep else np.uint8), Path("map.png"))

    def _about(self) -> dict[str, Any]:
        return {"shares": {name: float(f"{share:.6g}") for name, share in self.shares().items()}}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RestoredImage(ImageResult):
    """A restored image.

    Attributes:
        pixels: BGR ``uint8 (H, W, 3)``, or grey ``(H, W)``; of the source's size, or a whole number of times as large.
        tiles: the number of tiles; 1: the whole image at once.
    """

    own_suffix: ClassVar[str | None] = ".png"  # lossless

    pixels: Array
    tiles: int = 1

    def draw(self, image: Array | None = None, **options: Unpack[DrawKeywords]) -> Array:
        """See :meth:`ImageResult.draw`: the restored image itself; the source and the options are not needed."""
        return as_bgr(self.pixels)

    def summary(self) -> str:
        """See :meth:`ImageResult.summary`."""
        height, width = self.pixels.shape[:2]
        return f"restored, {width}x{height}{_in_tiles(self.tiles)}"

    def to_png(self) -> bytes:
        """See :meth:`ImageResult.to_png`: the restored image."""
        return encode_image(self.pixels, Path("restored.png"))

    def _about(self) -> dict[str, Any]:
        return {"restored": list(self.pixels.shape[:2]), "tiles": self.tiles}


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class RestoredRaw(ImageResult):
    """A restored mosaic; ``tiles`` as in :class:`RestoredImage`."""

    own_suffix: ClassVar[str | None] = ".dng"

    raw: RawImage
    tiles: int = 1

    def developed(self, bits: int = 8) -> Array:
        """Return the mosaic as an upright BGR image of 8 or 16 bits, demosaiced and white balanced by LibRaw.

        Raises:
            MissingDependencyError: rawpy is not installed.
        """
        from io import BytesIO

        rawpy: Any = import_extra("rawpy", "raw")
        with rawpy.imread(BytesIO(dng_bytes(self.raw))) as raw:
            balanced = bool(self.raw.white_balance)
            rgb = raw.postprocess(use_camera_wb=balanced, use_auto_wb=not balanced, output_bps=bits)
        developed: Array = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        return developed

    def draw(self, image: Array | None = None, **options: Unpack[DrawKeywords]) -> Array:
        """See :meth:`ImageResult.draw`: the developed image; the source and the options are not needed."""
        return self.developed()

    def save(self, path: str | os.PathLike[str], image: Array | None = None, **options: Unpack[DrawKeywords]) -> Path:
        """Write the mosaic as ``.dng`` with the source's levels and colours, or the developed image: 16 bits for
        ``.png`` and ``.tif``, 8 bits for other formats.

        Raises:
            OutputError: the format is not one that is written, or the place is not writable or full.
        """
        file = Path(path)
        suffix = file.suffix.lower()
        if suffix in RAW_FILES:
            write_atomic(file, dng_bytes(self.raw), durable=False)
        else:
            write_atomic(file, encode_image(self.developed(16 if suffix in DEEP else 8), file), durable=False)
        return file

    def summary(self) -> str:
        """See :meth:`ImageResult.summary`."""
        raw = self.raw
        levels = f"{raw.letters}, black {raw.black[0]}, white {raw.white}"
        return f"mosaic of {self.size[1]}x{self.size[0]} ({levels}) restored{_in_tiles(self.tiles)}"

    def _about(self) -> dict[str, Any]:
        raw = self.raw
        return {"pattern": raw.letters, "black": list(raw.black), "white": raw.white, "tiles": self.tiles}


def _in_tiles(tiles: int) -> str:
    return f", in {tiles} tiles" if tiles > 1 else ""
