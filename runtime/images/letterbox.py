"""The letterbox: images on a network's canvas, and boxes on their way back.

Coordinates are continuous, as in YOLOv5 and YOLOv7: x = 0 is the left edge of an image, x = width the right one, and
``network = source * scale + pad``. Upstream inverts its letterbox with one scale and half pads (``scale_coords``),
although the pixels were moved by whole pads and a size rounded for each axis. Here the inverse is that of what was
done to the pixels; the two differ by less than one network pixel (at most 0.5 from the pad and, at the far edge, 0.5
from the rounded size), and only here the image's edges come back as its edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import cv2
import numpy as np

from deploykit.errors import ImageError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.pillow_resize import resample
from deploykit.spec import Fit

__all__ = ["Letterbox"]


@dataclass(frozen=True)
class Letterbox:
    """How one image lies on a network's canvas: ``network = source * scale + pad``. Sizes are (height, width).

    ``resized`` is the image's size on the canvas, ``pad`` its (left, top); ``scale`` (x, y) follows from them. The
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
        """Lay an image of ``source`` (height, width) on a canvas of at most ``size``.

        ``fit.kind`` is ``letterbox`` or ``resize`` (each axis by itself, no pad). ``auto`` overrides ``fit.auto``: a
        network with a fixed shape takes the full canvas only.

        Raises:
            SpecError: another kind of fit, which no single canvas can express.
        """
        border = fit.pad_value if fit.pad_colour is None else fit.pad_colour
        if fit.kind == "resize":
            return cls(source, size, size, (0, 0), border, resample=fit.resample)
        if fit.kind != "letterbox":
            raise SpecError(f"an image is laid on a canvas by letterbox or resize, but the spec's fit is {fit.kind!r}")
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
            ImageError: the image has another size than this letterbox was made for.
        """
        if image.shape[:2] != self.source:
            raise ImageError(f"this letterbox is for images of {self.source} (height, width), got {image.shape[:2]}")
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
