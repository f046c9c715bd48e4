"""Pictures on their way into a network: read, letterbox, blob; and boxes on their way back.

Coordinates are continuous, as in YOLOv5 and YOLOv7: x = 0 is the left edge of a picture, x = width the right one, and
``network = source * scale + pad``. Upstream inverts its letterbox with one scale and half pads (``scale_coords``),
although the pixels were moved by whole pads and a size rounded for each axis. Here the inverse is that of what was
done to the pixels; the two differ by less than one network pixel (at most 0.5 from the pad and, at the far edge, 0.5
from the rounded size), and only here the picture's edges come back as its edges.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

import cv2
import numpy as np

from deploykit.errors import ImageError, NotFoundError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import close_matches
from deploykit.runtime.images.pillow_resize import resample
from deploykit.spec import Fit, InputSpec

__all__ = ["ImageSource", "Letterbox", "as_bgr", "blob", "blob_tables", "decode_image", "encoded_image", "read_image"]

ImageSource = str | os.PathLike[str] | bytes | Array

# Of a camera's raw file OpenCV decodes the thumbnail, or nothing.
RAW_SUFFIXES = {".arw", ".cr2", ".cr3", ".dng", ".kdc", ".nef", ".orf", ".raf", ".rw2"}


def read_image(source: ImageSource) -> Array:
    """A picture as BGR ``uint8 (H, W, 3)``.

    Files and encoded bytes are turned upright by their EXIF orientation, as people see them: results are in the
    pixels of the upright picture. Grey becomes BGR, an alpha channel is dropped, 16 bits a channel become 8.
    Arrays are BGR as OpenCV gives them; see :func:`as_bgr`.

    Raises:
        NotFoundError: there is no such file.
        ImageError: empty, not a picture that OpenCV reads, or an array of another kind.
    """
    if isinstance(source, np.ndarray):
        return as_bgr(source)
    if isinstance(source, bytes):
        return decode_image(source)
    try:
        path = Path(source)
    except TypeError as e:
        raise ImageError(f"a picture is a path, encoded bytes or a BGR array, got {type(source).__name__}") from e
    return decode_image(encoded_image(path), str(path))


def encoded_image(path: Path) -> bytes:
    """The bytes of a picture's file, not decoded yet.

    Raises:
        NotFoundError: there is no such file.
        ImageError: it cannot be read, or is a camera's raw file.
    """
    if path.suffix.lower() in RAW_SUFFIXES:
        raise ImageError(f"{path} is a camera's raw file; only developed pictures are read: convert it to PNG or JPEG")
    try:
        return path.read_bytes()  # and not cv2.imread, which does not open every name that the system allows
    except FileNotFoundError as e:
        raise NotFoundError(f"a picture was expected at {path}, but there is no such file{close_matches(path)}") from e
    except (OSError, ValueError) as e:  # ValueError: a name that no file can have
        raise ImageError(f"cannot read the picture {path}: {getattr(e, 'strerror', None) or e}") from e


def decode_image(data: bytes, name: str = "the encoded picture") -> Array:
    """Decode JPEG, PNG, WebP, TIFF, BMP ... bytes to BGR ``uint8 (H, W, 3)``; ``name`` is for the message.

    Raises:
        ImageError: no bytes, or bytes that OpenCV does not decode (a picture that is cut off included).
    """
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as e:  # for example more pixels than OpenCV's limit
        raise ImageError(f"OpenCV does not decode {name}: {e.err}") from e
    if image is None or _is_cut_off_jpeg(data):
        start = data[:4].hex(" ")
        raise ImageError(
            f"{name} is not a whole picture of a kind that OpenCV reads ({len(data)} bytes, starting {start}): "
            "convert it to JPEG or PNG, or copy it again"
        )
    return image


def _is_cut_off_jpeg(data: bytes) -> bool:
    """Whether a JPEG's end marker is missing. OpenCV 5 refuses such a file, OpenCV 4 gives a picture that ends grey."""
    if data[:2] != b"\xff\xd8":
        return False
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":  # up to the start of the scan,
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")  # because a thumbnail has an end marker too
    return data.rfind(b"\xff\xd9", place) < 0


def as_bgr(image: Array) -> Array:
    """An array as BGR ``uint8 (H, W, 3)``: grey ``(H, W)`` or ``(H, W, 1)`` and BGRA ``(H, W, 4)`` are converted.

    Raises:
        ImageError: not uint8 (whose range would be a guess), empty, or of another shape.
    """
    if image.dtype != np.uint8:
        raise ImageError(f"a picture array must be uint8 (0 to 255), got {image.dtype}: scale and convert it first")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ImageError(f"a picture array must be (height, width, 3) in BGR order, got {image.shape}")
    if 0 in image.shape:
        raise ImageError(f"the picture array is empty: its shape is {image.shape}")
    if image.ndim == 2 or image.shape[2] == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    return np.ascontiguousarray(image[:, :, :3])


@dataclass(frozen=True)
class Letterbox:
    """How one picture lies on a network's canvas: ``network = source * scale + pad``. Sizes are (height, width).

    ``resized`` is the picture's size on the canvas, ``pad`` its (left, top); ``scale`` (x, y) follows from them. The
    border is ``pad_value``, a grey or (blue, green, red).
    ``shrink`` and ``resample``: how it is resized, see :class:`deploykit.spec.Fit`.
    """

    source: tuple[int, int]
    resized: tuple[int, int]
    canvas: tuple[int, int]
    pad: tuple[int, int]
    pad_value: int | tuple[int, int, int] = 114
    shrink: Literal["linear", "area"] = "linear"
    resample: Literal["opencv", "bilinear", "bicubic", "lanczos"] = "opencv"

    @classmethod
    def fit(cls, source: tuple[int, int], size: tuple[int, int], fit: Fit, *, auto: bool | None = None) -> Self:
        """Lay a picture of ``source`` (height, width) on a canvas of at most ``size``.

        ``fit.kind`` is ``letterbox`` or ``resize`` (each axis by itself, no pad). ``auto`` overrides ``fit.auto``: a
        network with a fixed shape takes the full canvas only.

        Raises:
            SpecError: another kind of fit, which no single canvas can express.
        """
        border = fit.pad_value if fit.pad_colour is None else fit.pad_colour
        if fit.kind == "resize":
            return cls(source, size, size, (0, 0), border, resample=fit.resample)
        if fit.kind != "letterbox":
            raise SpecError(f"a picture is laid on a canvas by letterbox or resize, but the spec's fit is {fit.kind!r}")
        gain = min(size[0] / source[0], size[1] / source[1])
        if not fit.scale_up:
            gain = min(gain, 1.0)
        whole: Callable[[float], int] = int
        if fit.rounding != "floor":
            whole = round if fit.rounding == "round" else math.ceil
        height, width = (max(1, whole(side * gain)) for side in source)  # a sliver still has one pixel
        canvas = size
        if fit.auto if auto is None else auto:
            sides = (height, width) if not fit.margin else [side * gain + fit.margin * fit.stride for side in source]
            canvas = (_multiple(sides[0], fit.stride), _multiple(sides[1], fit.stride))
        left, top = (canvas[1] - width) // 2, (canvas[0] - height) // 2
        pad = (left, top) if fit.anchor == "centre" else (0, 0)
        return cls(source, (height, width), canvas, pad, border, fit.shrink, fit.resample)

    @property
    def scale(self) -> tuple[float, float]:
        """Network pixels for one source pixel, (x, y); the two differ where the size was rounded."""
        return self.resized[1] / self.source[1], self.resized[0] / self.source[0]

    def apply(self, image: Array) -> Array:
        """``uint8 (h, w, 3)`` of the source size -> the canvas, ``uint8 (H, W, 3)``; the colour order is kept. Other
        numbers of channels stay as they are.

        Bilinear resize, and a border around it: equal in every byte in OpenCV 4 and 5, which ``warpAffine`` is not.

        Raises:
            ImageError: the picture has another size than this letterbox was made for.
        """
        if image.shape[:2] != self.source:
            raise ImageError(f"this letterbox is for pictures of {self.source} (height, width), got {image.shape[:2]}")
        (height, width), (left, top) = self.resized, self.pad
        canvas = np.empty((*self.canvas, *image.shape[2:]), np.uint8)
        place = canvas[top : top + height, left : left + width]
        if self.resized == self.source:
            place[...] = image
        elif self.resample != "opencv":
            place[...] = resample(image, self.resized, self.resample)
        else:
            smaller = height < self.source[0] or width < self.source[1]
            area = self.shrink == "area" and smaller
            cv2.resize(image, (width, height), dst=place, interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
        for border in (canvas[:top], canvas[top + height :], canvas[:, :left], canvas[:, left + width :]):
            border[...] = self.pad_value
        return canvas

    def to_network(self, points: Array) -> Array:
        """Source pixels to network pixels, for an array whose last axis holds x, y pairs (points or xyxy boxes)."""
        return points * self._tiled(self.scale, points) + self._tiled(self.pad, points)

    def to_source(self, points: Array) -> Array:
        """Network pixels to source pixels, for an array whose last axis holds x, y pairs (points or xyxy boxes)."""
        return (points - self._tiled(self.pad, points)) / self._tiled(self.scale, points)

    @staticmethod
    def _tiled(pair: tuple[float, float], points: Array) -> Array:
        return np.tile(np.asarray(pair, points.dtype), points.shape[-1] // 2)


def _multiple(side: float, stride: int) -> int:
    return math.ceil(side / stride) * stride


def blob(canvases: Sequence[Array], spec: InputSpec, out: Array | None = None) -> Array:
    """Canvases (BGR ``uint8 (H, W, 3)``, one size) as the network's input ``float32 (B, 3, H, W)``.

    Each value is ``(p * scale - mean) / std``, computed in float64 for the 256 values that a pixel can have and
    rounded once: ``scale = 1/255`` gives exactly the float32 quotient ``p / 255``.

    Args:
        canvases: B of them, or fewer than ``out`` has room for; the rest of ``out`` becomes zeros.
        spec: colour order, scale, mean and std.
        out: a float32 array ``(B, 3, H, W)`` to write into; a new one costs more time than the conversion.
    """
    height, width = canvases[0].shape[:2]
    if out is None:
        out = np.empty((len(canvases), 3, height, width), np.float32)
    order = (2, 1, 0) if spec.colour == "rgb" else (0, 1, 2)
    tables = blob_tables(spec)
    split = _planes(height, width)
    for canvas, planes in zip(canvases, out, strict=False):
        cv2.split(canvas, split)
        for channel, plane, table in zip(order, planes, tables, strict=True):
            cv2.LUT(split[channel], table, dst=plane)
    out[len(canvases) :] = 0.0
    return out


_scratch = threading.local()


def _planes(height: int, width: int) -> list[Array]:
    """Three uint8 planes of this thread, the same ones as long as the size stays: the page faults of fresh memory
    take longer than splitting a picture does."""
    planes: list[Array] | None = getattr(_scratch, "planes", None)
    if planes is None or planes[0].shape != (height, width):
        planes = _scratch.planes = [np.empty((height, width), np.uint8) for _ in range(3)]
    return planes


def blob_tables(spec: InputSpec) -> tuple[Array, ...]:
    """What each of the 256 pixel values becomes: ``float32 (256,)`` a channel, in the network's channel order."""
    return _tables(spec.scale, spec.mean, spec.std)


@lru_cache(maxsize=16)
def _tables(scale: float, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Array, ...]:
    pixels = np.arange(256, dtype=np.float64)
    return tuple(((pixels * scale - m) / s).astype(np.float32) for m, s in zip(mean, std, strict=True))
