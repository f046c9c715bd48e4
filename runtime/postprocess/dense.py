"""Postprocessing of a dense output: classes, a label map, a restored image."""

from __future__ import annotations

import math

import cv2
import numpy as np

from deploykit.runtime.arrays import Array
from deploykit.runtime.images.placing import CanvasImage
from deploykit.spec import InputSpec

__all__ = ["label_map", "to_image", "top_classes"]

CHUNK = 8  # classes whose logits are resized at a time: 150 classes of a large image would take gigabytes


def top_classes(values: Array, count: int, *, probabilities: bool = False) -> tuple[Array, Array]:
    """Return the ``count`` best classes of ``values (C,)``, best first, and their probabilities in float64.

    ``values`` are logits, of which the softmax is taken, or ``probabilities``.
    """
    wide = values.astype(np.float64)
    if probabilities:
        order = np.argsort(-wide, kind="stable")[:count]
        return order, wide[order]
    powers = np.exp(wide - wide.max())
    order = np.argsort(-wide, kind="stable")[:count]
    return order, powers[order] / powers.sum()


def label_map(logits: Array, placed: CanvasImage, *, threshold: float = 0.5) -> Array:
    """Return the class of every pixel of the source image, ``(H, W) int32``, from ``logits (C, h, w)``.

    Logits are resized bilinearly before they are compared, so borders follow the classes and not the network's pixels.
    A single channel is the logit of class 1 against class 0.
    """
    if len(logits) == 1:
        labels: Array = _on_source(logits[0], placed) > math.log(threshold / (1.0 - threshold))
        return labels.astype(np.int32)
    best = np.full(placed.source, -np.inf, np.float32)
    labels = np.zeros(placed.source, np.int32)
    for start in range(0, len(logits), CHUNK):
        for number, channel in enumerate(logits[start : start + CHUNK], start):
            value = _on_source(channel, placed)
            better = value > best
            best[better] = value[better]
            labels[better] = number
    return labels


def _on_source(channel: Array, placed: CanvasImage) -> Array:
    """Crop a map over the canvas to the image's region and resize it to the image's size."""
    left, top, width, height = placed.region
    y, x = channel.shape[0] / placed.canvas.shape[0], channel.shape[1] / placed.canvas.shape[1]
    rows = slice(round(top * y), max(round((top + height) * y), round(top * y) + 1))
    columns = slice(round(left * x), max(round((left + width) * x), round(left * x) + 1))
    part = np.ascontiguousarray(channel[rows, columns], np.float32)
    resized: Array = cv2.resize(part, placed.source[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def to_image(image: Array, placed: CanvasImage, canvas: InputSpec) -> Array:
    """Turn the network's ``image (C, h, w)`` into a restored image ``uint8 (H, W, C)`` of the source's size: BGR, but
    grey ``(H, W)`` for one channel, and for more than three as
    :func:`deploykit.runtime.images.to_tensor.to_nchw` takes them.

    The normalisation of the input is inverted: ``p = (x * std + mean) / scale``, clipped to 0..255 and rounded. The
    image of an upscaling network is larger by its factor.
    """
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (canvas.mean, canvas.std))
    pixels = np.clip(np.rint((image.astype(np.float32) * std + mean) / canvas.scale), 0, 255).astype(np.uint8)
    turned = len(pixels) >= 3 and canvas.colour == "rgb"
    planes = np.concatenate((pixels[2::-1], pixels[3:])) if turned else pixels
    factor = image.shape[1] / placed.canvas.shape[0]
    left, top, width, height = (round(side * factor) for side in placed.region)
    pixels = np.ascontiguousarray(planes[:, top : top + height, left : left + width].transpose(1, 2, 0))
    return pixels[..., 0] if len(planes) == 1 else pixels
