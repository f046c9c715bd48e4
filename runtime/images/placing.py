"""Pictures for networks with one dense output, and what the output means: classes, a label map, a restored picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from deploykit.errors import ImageSizeError, SpecError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.to_tensor import blob, blob_tables
from deploykit.spec import InputSpec, ModelSpec, Tensor

__all__ = [
    "DENSE_TASKS",
    "DenseTask",
    "Placed",
    "dense_blob",
    "dense_output",
    "label_map",
    "place",
    "restored",
    "top_classes",
]

DenseTask = Literal["classify", "segment", "restore", "features"]
DENSE_TASKS: tuple[DenseTask, ...] = ("classify", "segment", "restore", "features")
"""The tasks of networks with one dense output."""

CHUNK = 8  # classes whose logits are enlarged at a time: 150 classes of a large picture would take gigabytes


@dataclass(frozen=True, eq=False)
class Placed:
    """A picture on its canvas: ``canvas`` BGR ``uint8 (H, W, 3)`` (or of other channels), ``source`` (height, width) of
    the picture, and ``region``, the (left, top, width, height) of the canvas that shows it (a crop shows only a part).
    """

    canvas: Array
    source: tuple[int, int]
    region: tuple[int, int, int, int]


def place(image: Array, canvas: InputSpec) -> Placed:
    """Lay a picture on the canvas as the spec's fit says.

    ``letterbox`` and ``resize`` as :class:`Letterbox`; ``crop``: scaled so that the shorter side is ``size /
    crop_share``, then the middle, as classifiers are evaluated (with torchvision's roundings); ``pad``: mirrored on the
    right and below up to the next multiple of the stride, or up to the size where that is fixed.

    Raises:
        ImageSizeError: a picture to pad is larger than a fixed canvas, or too small to mirror.
        SpecError: a fit that works in tiles.
    """
    fit, source = canvas.fit, (image.shape[0], image.shape[1])
    if fit.kind in ("letterbox", "resize"):
        box = Letterbox.fit(source, canvas.size, fit, auto=fit.auto and canvas.dynamic == "shape")
        return Placed(box.apply(image), source, (*box.pad, box.resized[1], box.resized[0]))
    if fit.kind == "crop":
        return _cropped(image, canvas)
    if fit.kind == "pad":
        return _padded(image, canvas)
    raise SpecError(f"a whole picture is laid on a canvas by letterbox, resize, crop or pad, not by {fit.kind!r}")


def _cropped(image: Array, canvas: InputSpec) -> Placed:
    height, width = canvas.size
    source = (image.shape[0], image.shape[1])
    fit = canvas.fit
    least = math.floor(height / fit.crop_share), math.floor(width / fit.crop_share)
    if least[0] * source[1] >= least[1] * source[0]:  # the height is what the picture is scaled to
        scaled = least[0], max(width, int(least[0] * source[1] / source[0]))
    else:
        scaled = max(height, int(least[1] * source[0] / source[1])), least[1]
    box = Letterbox(source, scaled, scaled, (0, 0), shrink=fit.shrink, resample=fit.resample)
    top, left = round((scaled[0] - height) / 2), round((scaled[1] - width) / 2)
    middle = box.apply(image)[top : top + height, left : left + width]
    return Placed(np.ascontiguousarray(middle), source, (0, 0, width, height))


def _padded(image: Array, canvas: InputSpec) -> Placed:
    height, width = image.shape[:2]
    stride = canvas.fit.stride
    size = (-(-height // stride) * stride, -(-width // stride) * stride)
    if canvas.dynamic != "shape":
        size = canvas.size
        if height > size[0] or width > size[1]:
            raise ImageSizeError(
                f"this network takes pictures of at most {size[0]}x{size[1]} (height x width), got {height}x{width}: "
                "export it with --dynamic shape, or for the size of the pictures"
            )
    below, right = size[0] - height, size[1] - width
    if below >= height or right >= width:
        raise ImageSizeError(f"a picture of {height}x{width} is too small to be mirrored up to {size[0]}x{size[1]}")
    padded = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REFLECT_101)
    return Placed(padded, (height, width), (0, 0, width, height))


def dense_blob(canvases: Sequence[Array], canvas: InputSpec) -> Array:
    """Pictures of one size, ``uint8 (H, W, C)``, as the network's input ``float32 (B, C, H, W)``.

    For one channel a BGR picture becomes grey. Of more than three, the first three are blue, green and red, as OpenCV
    reads them, and are put into the spec's order; the others follow as they are.
    """
    if canvas.channels == 3:
        return blob(canvases, canvas)
    out = np.empty((len(canvases), canvas.channels, *canvases[0].shape[:2]), np.float32)
    for picture, planes in zip(canvases, out, strict=True):
        if canvas.channels == 1:
            channels = [picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)]
        else:
            order = [*range(canvas.channels)]
            if canvas.colour == "rgb":
                order[:3] = order[2::-1] if canvas.channels > 2 else order
            channels = [picture[..., i] for i in order]
        for channel, plane, table in zip(channels, planes, blob_tables(canvas), strict=True):
            plane[...] = table[channel]
    return out


def dense_output(outputs: Mapping[str, Array], spec: ModelSpec, what: str) -> Array:
    """The one output of the spec's name, or the only one: ``(B, C)`` of classes or features, else ``(B, C, H, W)``.

    Raises:
        SpecError: it has other axes; ``what`` is what it was computed of.
    """
    assert isinstance(spec.output, Tensor)
    found = outputs.get(spec.output.name, next(iter(outputs.values())))
    dims = spec.dense_axes
    if found.ndim != dims:
        raise SpecError(
            f"the task {spec.task} needs an output of {dims} axes, the network gives {found.shape} ({what})"
        )
    return found


def top_classes(logits: Array, count: int) -> tuple[Array, Array]:
    """The ``count`` best classes of ``logits (C,)``, the best first, and their probabilities (softmax in float64)."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max())
    order = np.argsort(-wide, kind="stable")[:count]
    return order, powers[order] / powers.sum()


def label_map(logits: Array, placed: Placed, *, threshold: float = 0.5) -> Array:
    """The class of every pixel of the source picture, ``(H, W) int32``, from ``logits (C, h, w)``.

    Logits are enlarged bilinearly and compared then, so that borders run between classes and not along the network's
    pixels. One channel is the logit of class 1 against class 0.
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


def _on_source(channel: Array, placed: Placed) -> Array:
    """One map over the canvas, cut to the picture's region and brought to the picture's size."""
    left, top, width, height = placed.region
    y, x = channel.shape[0] / placed.canvas.shape[0], channel.shape[1] / placed.canvas.shape[1]
    rows = slice(round(top * y), max(round((top + height) * y), round(top * y) + 1))
    columns = slice(round(left * x), max(round((left + width) * x), round(left * x) + 1))
    part = np.ascontiguousarray(channel[rows, columns], np.float32)
    resized: Array = cv2.resize(part, placed.source[::-1], interpolation=cv2.INTER_LINEAR)
    return resized


def restored(image: Array, placed: Placed, canvas: InputSpec) -> Array:
    """A restored picture, ``uint8 (H, W, C)`` of the source's size, from the network's ``image (C, h, w)``: BGR, but
    grey ``(H, W)`` of one channel, and of more than three as :func:`dense_blob` takes them.

    The numbers of the input are undone: ``p = (x * std + mean) / scale``, clipped to 0..255 and rounded. A network that
    enlarges gives a picture as many times larger.
    """
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (canvas.mean, canvas.std))
    pixels = np.clip(np.rint((image.astype(np.float32) * std + mean) / canvas.scale), 0, 255).astype(np.uint8)
    turned = len(pixels) >= 3 and canvas.colour == "rgb"
    planes = np.concatenate((pixels[2::-1], pixels[3:])) if turned else pixels
    factor = image.shape[1] / placed.canvas.shape[0]
    left, top, width, height = (round(side * factor) for side in placed.region)
    picture = np.ascontiguousarray(planes[:, top : top + height, left : left + width].transpose(1, 2, 0))
    return picture[..., 0] if len(planes) == 1 else picture
