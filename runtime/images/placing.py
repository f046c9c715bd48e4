"""Preprocessing, first half: an image on the network's canvas, by the fit of the spec."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from deploykit.errors import ImageSizeError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox, check_least
from deploykit.spec import InputSpec

__all__ = ["CanvasImage", "on_own_canvas", "place_on_canvas"]


@dataclass(frozen=True, eq=False)
class CanvasImage:
    """An image on its canvas.

    ``canvas`` is BGR ``uint8 (H, W, 3)``, or has other channels. ``source`` is the (height, width) of the image.
    ``region`` is the (left, top, width, height) of the canvas that shows the image; a crop shows only a part of it.
    ``letterbox`` maps points between the two where the whole image is on the canvas and only scaled. ``tiles`` is the
    number of parts in which the network saw the image.
    """

    canvas: Array
    source: tuple[int, int]
    region: tuple[int, int, int, int]
    letterbox: Letterbox | None = None
    tiles: int = 1


def place_on_canvas(image: Array, canvas: InputSpec) -> CanvasImage:
    """Place an image on the canvas by the spec's fit.

    ``letterbox`` and ``resize`` work as in :class:`Letterbox`. ``crop`` scales the shorter side to ``size /
    crop_share`` and keeps the centre, as classifiers are evaluated (with torchvision's rounding); with ``crop_first``
    it cuts the middle square out and then scales it, as YOLOv5's classifiers are evaluated. ``pad`` mirrors the
    image on the right and below, up to the next multiple of the stride, or up to the size where that is fixed.

    Raises:
        ImageSizeError: an image to pad is larger than a fixed canvas, or too small to mirror; an image makes an input
            that is smaller than the network takes.
        SpecError: the fit works in tiles.
    """
    fit, source = canvas.fit, (image.shape[0], image.shape[1])
    if fit.kind in ("letterbox", "resize"):
        box = Letterbox.fit(source, canvas.size, fit, auto=fit.auto and canvas.dynamic == "shape")
        return CanvasImage(box.apply(image), source, (*box.pad, box.resized[1], box.resized[0]), box)
    if fit.kind == "crop":
        return _cropped(image, canvas)
    if fit.kind == "pad":
        return _padded(image, canvas)
    raise SpecError(f"expected a spec whose fit is letterbox, resize, crop or pad, got the fit {fit.kind!r}")


def on_own_canvas(image: Array, *, tiles: int = 1) -> CanvasImage:
    """An image that is its own canvas."""
    height, width = image.shape[:2]
    return CanvasImage(image, (height, width), (0, 0, width, height), tiles=tiles)


def _cropped(image: Array, canvas: InputSpec) -> CanvasImage:
    height, width = canvas.size
    source = (image.shape[0], image.shape[1])
    fit = canvas.fit
    if fit.crop_first:
        side = max(int(min(source) * fit.crop_share), 1)
        top, left = (source[0] - side) // 2, (source[1] - side) // 2
        box = Letterbox((side, side), canvas.size, canvas.size, (0, 0), shrink=fit.shrink, resample=fit.resample)
        return CanvasImage(box.apply(image[top : top + side, left : left + side]), source, (0, 0, width, height))
    least = math.floor(height / fit.crop_share), math.floor(width / fit.crop_share)
    if least[0] * source[1] >= least[1] * source[0]:  # the height decides the scale
        scaled = least[0], max(width, int(least[0] * source[1] / source[0]))
    else:
        scaled = max(height, int(least[1] * source[0] / source[1])), least[1]
    box = Letterbox(source, scaled, scaled, (0, 0), shrink=fit.shrink, resample=fit.resample)
    top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
    middle = box.apply(image)[top : top + height, left : left + width]
    return CanvasImage(np.ascontiguousarray(middle), source, (0, 0, width, height))


def _padded(image: Array, canvas: InputSpec) -> CanvasImage:
    height, width = image.shape[:2]
    stride = canvas.fit.stride
    size = (-(-height // stride) * stride, -(-width // stride) * stride)
    if canvas.dynamic != "shape":
        size = canvas.size
        if height > size[0] or width > size[1]:
            raise ImageSizeError(
                f"this network takes images of at most {size[0]}x{size[1]} (height x width), got {height}x{width}: "
                "export it with --dynamic shape, or with the size of the images"
            )
    below, right = size[0] - height, size[1] - width
    if below >= height or right >= width:
        raise ImageSizeError(
            f"an image of {height}x{width} (height x width) is too small to be mirrored up to {size[0]}x{size[1]}"
        )
    check_least((height, width), size, canvas.fit)
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REFLECT_101)
    return CanvasImage(padded, (height, width), (0, 0, width, height))
