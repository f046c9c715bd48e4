"""The tensors between the steps of an ensemble, and the arrays that it returns for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from deploykit.errors import UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.letterbox import Letterbox
from deploykit.runtime.images.placing import CanvasImage
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.dense import Classification, LabelMap, RestoredImage
from deploykit.spec import InputSpec, ModelSpec

__all__ = [
    "CANVAS", "IMAGE", "PLACEMENT", "PLACES", "RESULT", "TYPES", "ResultArray", "arrays_of", "network_tensor", "placed",
    "placement_of", "result_arrays", "typed",
]  # fmt: skip

IMAGE, CANVAS, PLACEMENT, RESULT = "image", "canvas", "placement", "result"
"""The encoded image; the input of the network; where the image lies in it; its JSON document."""

PLACES = 8
"""Numbers of a placement: height and width of the image; left, top, width and height of its region on the canvas;
height and width of the canvas."""

TYPES = {
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "bool": "TYPE_BOOL",
}
"""numpy's name of a type -> Triton's."""


@dataclass(frozen=True)
class ResultArray:
    """An array that the ensemble returns beside the document, if a client asks for it.

    ``dims`` are those of one image; -1: it depends on the image. ``field`` is the attribute of the result.
    """

    name: str
    dtype: Literal["float32", "int32", "uint8"]
    dims: tuple[int, ...]
    field: str = ""

    def of(self, result: ImageResult) -> Array:
        """Return the array of one image's result."""
        if self.name == "count":
            return np.array([len(getattr(result, "boxes"))], np.int32)  # noqa: B009  (of one kind of result alone)
        found = getattr(result, self.field or self.name)
        if found is None:  # of an image without objects
            found = np.empty((0, *(result.size if self.name == "masks" else self.dims[1:])))
        value: Array = np.asarray(found).astype(self.dtype)
        return value[..., None] if isinstance(result, RestoredImage) and value.ndim == 2 else value


def result_arrays(spec: ModelSpec) -> tuple[ResultArray, ...]:
    """Return the arrays that the results of a model have; see the classes of :mod:`deploykit.runtime.results`."""
    dense = {
        "classify": (ResultArray("labels", "int32", (-1,)), ResultArray("scores", "float32", (-1,))),
        "segment": (ResultArray("labels", "int32", (-1, -1)),),
        "restore": (ResultArray("pixels", "uint8", (-1, -1, -1)),),
        "features": (ResultArray("features", "float32", (-1,), field="values"),),
    }
    shapes = {
        "instances": (ResultArray("masks", "uint8", (-1, -1, -1)),),
        "oriented": (ResultArray("rotated", "float32", (-1, 5)),),
    }
    if spec.task in dense:
        return dense[spec.task]
    found = [
        ResultArray("count", "int32", (1,)),
        ResultArray("boxes", "float32", (-1, 4)),
        ResultArray("scores", "float32", (-1,)),
        ResultArray("labels", "int32", (-1,)),
    ]
    if spec.keypoints is not None:
        found.append(ResultArray("keypoints", "float32", (-1, len(spec.keypoints.names), 3)))
    return (*found, *shapes.get(spec.task, ()))


def arrays_of(results: Sequence[ImageResult], wanted: Sequence[ResultArray]) -> dict[str, Array]:
    """Return the wanted arrays of the images of one request, by name, with an axis for the images.

    Arrays of objects are filled up with zeros to the longest; ``count`` tells how many objects an image has.

    Raises:
        UsageError: the arrays of two images cannot lie in one, because the images have different sizes.
    """
    found = {}
    for each in wanted:
        arrays = [each.of(result) for result in results]
        if len({array.shape[1:] for array in arrays}) > 1 or (_whole(results[0]) and len({*map(_shape, arrays)}) > 1):
            raise UsageError(
                f"the images of a request have different sizes, so {each.name!r} cannot be one array: send one image "
                "per request"
            )
        longest = max(len(array) for array in arrays)
        found[each.name] = np.stack([_filled(array, longest) for array in arrays])
    return found


def _whole(result: ImageResult) -> bool:
    return isinstance(result, (LabelMap, RestoredImage, Classification))


def _shape(array: Array) -> tuple[int, ...]:
    return array.shape


def _filled(array: Array, length: int) -> Array:
    return np.concatenate((array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)))


def network_tensor(name: str) -> str:
    """Return the name between the steps of an output of the network, which is not that of an array of the results."""
    return f"network_{name}"


def placement_of(shown: CanvasImage) -> Array:
    """Return where an image lies on its canvas, ``int32 (8,)``; see :data:`PLACES`."""
    return np.array([*shown.source, *shown.region, *shown.canvas.shape[:2]], np.int32)


def placed(placement: Array, canvas: InputSpec) -> CanvasImage:
    """Return what :func:`placement_of` describes, with a canvas that has a shape and no pixels.

    Args:
        placement: ``int32 (8,)``.
        canvas: the input of the spec, as the image was placed by it.
    """
    height, width, left, top, wide, high, *size = map(int, placement)
    source, fit, box = (height, width), canvas.fit, None
    if fit.kind in ("letterbox", "resize"):
        box = Letterbox.fit(source, canvas.size, fit, auto=fit.auto and canvas.dynamic == "shape")
    pixels = np.broadcast_to(np.uint8(0), (*size, canvas.channels))
    return CanvasImage(pixels, source, (left, top, wide, high), box)


def typed(values: Mapping[str, Any], name: str, kind: type[int] | type[float]) -> int | float | None:
    """Return a number among the parameters of a model's configuration; None where there is none.

    Raises:
        UsageError: it is no such number.
    """
    text = values.get(name, {}).get("string_value")
    if text is None:
        return None
    try:
        return kind(text)
    except ValueError as e:
        raise UsageError(f"the parameter {name!r} must be {kind.__name__}, got {text!r:.80}") from e
