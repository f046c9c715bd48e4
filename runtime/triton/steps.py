"""The two steps around a network, over arrays: the predictor's own functions in the predictor's order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from deploykit.errors import SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.in_memory import read_any_image
from deploykit.runtime.images.placing import place_on_canvas
from deploykit.runtime.images.to_tensor import to_nchw
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.session import TensorInfo
from deploykit.runtime.triton.tensors import placed, placement_of
from deploykit.spec import ModelSpec

__all__ = ["Decoding", "Preparation", "fixed_spec", "in_tiles"]


def fixed_spec(spec: ModelSpec, info: TensorInfo) -> ModelSpec:
    """Return the spec for a network with this input: one of fixed size takes no rectangles, whatever the spec says."""
    if None in info.shape[2:]:
        return spec
    return replace(spec, input=replace(spec.input, fit=replace(spec.input.fit, auto=False)))


def in_tiles(spec: ModelSpec, info: TensorInfo) -> bool:
    """Return whether a network with this input takes an image in tiles.

    Raises:
        SpecError: it takes the mosaics of RAW files, which are files and not encoded images.
    """
    adapter = adapter_of(spec)
    if adapter.takes_raw:
        raise SpecError("this network takes the mosaics of RAW files, which Triton does not get: run it with predict")
    return adapter.tiling(fixed_size=None not in info.shape[2:], batch=1) is not None


class Preparation:
    """Encoded images to the network's input.

    Args:
        spec: the spec of the network, from :func:`fixed_spec`.
        info: the network's input.
        options: of the prediction; ``max_pixels`` is used.
    """

    def __init__(self, spec: ModelSpec, info: TensorInfo, options: PredictOptions | None = None) -> None:
        self._options = options or PredictOptions()
        self._canvas, self._info = spec.input, info

    def __call__(self, images: Sequence[bytes]) -> tuple[Array, Array]:
        """Return the network's input ``(B, C, H, W)``, and where the images lie on it, ``int32 (len(images), 8)``.

        ``B`` is the number of images, or the network's fixed batch, whose unused slots are zeros.

        Raises:
            ImageError: an image cannot be read. UsageError: too many images, or canvases of different sizes.
        """
        slots = self._info.shape[0]
        if not images or (slots is not None and len(images) > slots):
            raise UsageError(f"expected 1 to {slots or 'any number of'} images in a request, got {len(images)}")
        channels, most = self._canvas.channels, self._options.max_pixels
        shown = [
            place_on_canvas(
                read_any_image(data, name=f"image{i}", channels=channels, max_pixels=most),
                self._canvas,
            )
            for i, data in enumerate(images)
        ]
        sizes = {each.canvas.shape[:2] for each in shown}
        if len(sizes) > 1:
            raise UsageError(
                "the images of a request lie on canvases of different sizes: send one image per request, which Triton "
                "batches itself"
            )
        canvases = [each.canvas for each in shown]
        out = np.empty((slots or len(images), channels, *sizes.pop()), np.float32)
        tensor = to_nchw(canvases, self._canvas, out).astype(np.dtype(self._info.dtype), copy=False)
        return tensor, np.stack([placement_of(each) for each in shown])


class Decoding:
    """A network's outputs to results.

    Args:
        spec: the spec of the network, from :func:`fixed_spec`.
        options: of the prediction, such as ``conf``.

    Raises:
        UsageError: an option does not apply to this network.
    """

    def __init__(self, spec: ModelSpec, options: PredictOptions | None = None) -> None:
        self._adapter, self._canvas = adapter_of(spec, options), spec.input

    def __call__(self, outputs: Mapping[str, Array], placements: Array) -> list[ImageResult]:
        """Return the result of each image of a request.

        Args:
            outputs: the network's outputs by name; those of unused slots come last.
            placements: ``int32 (n, 8)`` of :class:`Preparation`.

        Raises:
            SpecError, NotFiniteError: an output is not what the spec says.
        """
        start = time.perf_counter()
        self._adapter.check_values(outputs, len(placements))
        checking = (time.perf_counter() - start) / len(placements)
        results = []
        for i, placement in enumerate(placements):
            start = time.perf_counter()
            shown = placed(placement, self._canvas)
            made = self._adapter.decode(outputs, i, shown)
            ms = 1e3 * (checking + time.perf_counter() - start)
            results.append(made(size=shown.source, name=f"image{i}", timings={"postprocess": ms}))
        return results
