"""The letterbox places an image on a network's canvas and maps boxes back to the image.

Coordinates are continuous, as in YOLOv5 and YOLOv7: x = 0 is the left edge of an image, x = width the right one, and
``network = source * scale + pad``. Upstream inverts its letterbox (``scale_coords``) with one scale and half pads,
although the pixels were moved by whole pads and the size was rounded on each axis. Here the inverse is that of the
actual operation on the pixels. The two differ by less than one network pixel: at most 0.5 from the pad and, at the far
edge, 0.5 from the rounded size. Only the inverse used here maps the edges of the image back to its edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import cv2
import numpy as np

from deploykit.errors import ImageError, ImageSizeError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.pillow_resize import resample
from deploykit.spec import Fit

__all__ = ["Letterbox", "check_least"]


@dataclass(frozen=True)
class Letterbox:
    """How one image lies on a network's canvas: ``network = source * scale + pad``. Sizes are (height, width).

    ``resized`` is the image's size on the canvas and ``pad`` its (left, top) corner; ``scale`` (x, y) follows from
    them. ``pad_value`` is the colour of the border, a grey or (blue, green, red). ``shrink`` and ``resample`` select
    the interpolation, see :class:`deploykit.spec.Fit`.
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
        """Place an image of size ``source`` (height, width) on a canvas of at most ``size``.

        ``fit.kind`` is ``letterbox`` or ``resize`` (each axis by itself, no pad). ``auto`` overrides ``fit.auto``: a
        network with a fixed shape accepts only the full canvas.

        Raises:
            SpecError: the fit is of another kind, which needs more than one canvas.
            ImageSizeError: a rectangle is smaller than the network takes.
        """
        border = fit.pad_value if fit.pad_colour is None else fit.pad_colour
        if fit.kind == "resize":
            return cls(source, size, size, (0, 0), border, resample=fit.resample)
        if fit.kind != "letterbox":
            raise SpecError(f"expected a spec whose fit is letterbox or resize, got the fit {fit.kind!r}")
        gain = min(size[0] / source[0], size[1] / source[1])
        if not fit.scale_up:
            gain = min(gain, 1.0)
        to_int: Callable[[float], int] = int
        if fit.rounding != "floor":
            to_int = round if fit.rounding == "round" else math.ceil
        height, width = (max(1, to_int(side * gain)) for side in source)  # at least one pixel
        canvas = size
        if fit.auto if auto is None else auto:
            sides = (height, width) if not fit.margin else [side * gain + fit.margin * fit.stride for side in source]
            canvas = (_multiple(sides[0], fit.stride), _multiple(sides[1], fit.stride))
            check_least(source, canvas, fit)
        left, top = (canvas[1] - width) // 2, (canvas[0] - height) // 2
        pad = (left, top) if fit.anchor == "centre" else (0, 0)
        return cls(source, (height, width), canvas, pad, border, fit.shrink, fit.resample)

    @property
    def scale(self) -> tuple[float, float]:
        """Network pixels per source pixel, (x, y); the two differ where the size was rounded."""
        return self.resized[1] / self.source[1], self.resized[0] / self.source[0]

    def apply(self, image: Array) -> Array:
        """Turn an image ``uint8 (h, w, 3)`` of the source size into the canvas, ``uint8 (H, W, 3)``.

        The colour order and other numbers of channels are kept. The resize is bilinear and the border constant. The
        bytes are equal in OpenCV 4 and 5; those of ``warpAffine`` are not.

        Raises:
            ImageError: the image does not have the size that this letterbox was made for.
        """
        if image.shape[:2] != self.source:
            raise ImageError(f"expected an image of {self.source} (height, width), got one of {image.shape[:2]}")
        (height, width), (left, top) = self.resized, self.pad
        canvas = np.empty((*self.canvas, *image.shape[2:]), np.uint8)
        inside = canvas[top : top + height, left : left + width]
        if self.resized == self.source:
            inside[...] = image
        elif self.resample != "opencv":
            inside[...] = resample(image, self.resized, self.resample)
        else:
            smaller = height < self.source[0] or width < self.source[1]
            area = self.shrink == "area" and smaller
            cv2.resize(image, (width, height), dst=inside, interpolation=cv2.INTER_AREA if area else cv2.INTER_LINEAR)
        for border in (canvas[:top], canvas[top + height :], canvas[:, :left], canvas[:, left + width :]):
            border[...] = self.pad_value
        return canvas

    def to_network(self, points: Array) -> Array:
        """Map source pixels to network pixels; the last axis holds x, y pairs (points or xyxy boxes)."""
        return points * self._tiled(self.scale, points) + self._tiled(self.pad, points)

    def to_source(self, points: Array) -> Array:
        """Map network pixels to source pixels; the last axis holds x, y pairs (points or xyxy boxes)."""
        return (points - self._tiled(self.pad, points)) / self._tiled(self.scale, points)

    @staticmethod
    def _tiled(pair: tuple[float, float], points: Array) -> Array:
        return np.array(pair * (points.shape[-1] // 2), points.dtype)


def check_least(source: tuple[int, int], canvas: tuple[int, int], fit: Fit) -> None:
    """Check the canvas of an image, both (height, width), against the least side that a network takes.

    Raises:
        ImageSizeError: a side is shorter.
    """
    if min(canvas) < fit.least:
        raise ImageSizeError(
            f"an image of {source[0]}x{source[1]} (height x width) makes an input of {canvas[0]}x{canvas[1]}, and this "
            f"network takes sides of at least {fit.least} pixels: add a border, or take an export of fixed size"
        )


def _multiple(side: float, stride: int) -> int:
    return math.ceil(side / stride) * stride
