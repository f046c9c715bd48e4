"""Adapters of one dense output by task: classes, label maps, restored images, features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np

from deploykit.errors import SpecError, UsageError
from deploykit.runtime.arrays import Array
from deploykit.runtime.images.placing import CanvasImage
from deploykit.runtime.images.tiles import Tiling
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.outputs import OutputAdapter
from deploykit.runtime.postprocess.dense import label_map, to_image, top_classes
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.dense import Classification, Features, LabelMap, RestoredImage
from deploykit.spec import DenseOutput, ModelSpec

__all__ = ["dense_adapter"]

TOP = 5
OVERLAP = 32  # default overlap of tiles in pixels
FREE_TILE = 512  # side of a mosaic's tiles in pixels, for a network that takes any size
RAW_CHANNELS = 4


class _DenseAdapter(OutputAdapter[DenseOutput]):
    """The base of the four: decodes one image's part of the output in float32."""

    def decode(self, outputs: Mapping[str, Array], slot: int, shown: CanvasImage) -> Callable[..., ImageResult]:
        found = self.tensor_in(outputs, "an image")[slot]
        return self._meaning(found.astype(np.float32), shown)  # a copy

    def check_values(self, outputs: Mapping[str, Array], images: int) -> None:
        """See :meth:`OutputAdapter.check_values`: the channels too are those of the task."""
        super().check_values(outputs, images)
        self._check_channels(self.tensor_in(outputs, "the network").shape[1])

    def _check_channels(self, count: int) -> None:
        """Check the number of channels of the output.

        Raises:
            SpecError: the task, or the spec, has another number.
        """

    def _check_classes(self, count: int, possible: tuple[int, ...]) -> None:
        if self.spec.classes and count not in possible:
            raise SpecError(
                f"the spec names {len(self.spec.classes)} classes, but the output {self.output.name!r} has {count} "
                "channels: the names belong to another model"
            )

    @abstractmethod
    def _meaning(self, output: Array, shown: CanvasImage) -> Callable[..., ImageResult]:
        """Return what makes the result of one image's output, ``(C,)`` or ``(C, H, W)``."""


class _Classify(_DenseAdapter):
    takes: ClassVar[frozenset[str]] = frozenset({"top"})
    result_type = Classification
    gives = "their classes"
    done = "classified"
    meters: ClassVar[Mapping[str, Any]] = {"classify": "deploykit.runtime.evaluate.classes:ClassMeter"}

    def __init__(self, spec: ModelSpec, options: PredictOptions | None = None) -> None:
        super().__init__(spec, options)
        self.top = TOP if self.options.top is None else self.options.top
        if self.top < 1:
            raise UsageError(f"top must be at least 1, got {self.top}")

    def _check_channels(self, count: int) -> None:
        self._check_classes(count, (len(self.spec.classes),))

    def _meaning(self, output: Array, shown: CanvasImage) -> Callable[..., ImageResult]:
        labels, scores = top_classes(output, min(self.top, len(output)), probabilities=self.output.probabilities)
        return partial(Classification, labels=labels, scores=scores, classes=self.spec.classes, num_classes=len(output))


class _Segment(_DenseAdapter):
    result_type = LabelMap
    gives = "label maps of their size"
    done = "segmented"
    meters: ClassVar[Mapping[str, Any]] = {"segment": "deploykit.runtime.evaluate.label_maps:LabelMapMeter"}

    def _check_channels(self, count: int) -> None:
        classes = len(self.spec.classes)
        self._check_classes(count, (1, 2) if classes <= 2 else (classes,))  # one channel is class 1 against class 0

    def _meaning(self, output: Array, shown: CanvasImage) -> Callable[..., ImageResult]:
        classes = self.spec.classes
        if len(output) == len(classes) == 1:  # the background of a single logit has no name of its own
            classes = ("background", *classes)
        return partial(LabelMap, labels=label_map(output, shown), classes=classes, num_classes=max(len(output), 2))


class _Restore(_DenseAdapter):
    takes: ClassVar[frozenset[str]] = frozenset({"tile", "overlap"})
    result_type = RestoredImage
    gives = "restored images"
    done = "restored"
    meters: ClassVar[Mapping[str, Any]] = {"restore": "deploykit.runtime.evaluate.restored:RestoredMeter"}

    @property
    def takes_raw(self) -> bool:
        return self.spec.input.channels == RAW_CHANNELS

    def tiling(self, *, fixed_size: bool, batch: int) -> Tiling | None:
        canvas, tile, overlap = self.spec.input, self.options.tile, self.options.overlap
        size = (tile, tile) if isinstance(tile, int) else tile
        stride = canvas.fit.stride
        if size is not None and any(side % stride for side in size):
            raise UsageError(f"the sides of a tile must be multiples of this network's stride {stride}, got {size}")
        if fixed_size:
            if size not in (None, canvas.size):
                raise UsageError(
                    f"this network takes only tiles of {canvas.size} (height, width), got {size}: leave the size of a "
                    "tile out, or export the model again with another --img or --dynamic shape"
                )
            size = canvas.size
        elif size is None:
            if not (self.takes_raw or canvas.fit.kind == "tile" or overlap is not None):
                return None
            size = (FREE_TILE, FREE_TILE)
        most = (min(size) - canvas.fit.step) // 2
        asked = max(min(OVERLAP, most // 2), 0) if overlap is None else overlap
        return Tiling(size, asked, batch, canvas.fit.step)

    def _check_channels(self, count: int) -> None:
        channels = self.spec.input.channels
        if count not in ((1, 3) if channels == 1 else (1, channels)):
            raise SpecError(
                f"an image of {channels} channels is restored to as many, or to grey, but the output "
                f"{self.output.name!r} has {count} channels"
            )

    def _meaning(self, output: Array, shown: CanvasImage) -> Callable[..., ImageResult]:
        return partial(RestoredImage, pixels=to_image(output, shown, self.spec.input), tiles=shown.tiles)


class _Features(_DenseAdapter):
    result_type = Features
    gives = "their features"
    done = "described"

    def _meaning(self, output: Array, shown: CanvasImage) -> Callable[..., ImageResult]:
        return partial(Features, values=output)


TASKS: dict[str, type[_DenseAdapter]] = {
    "classify": _Classify,
    "segment": _Segment,
    "restore": _Restore,
    "features": _Features,
}


def dense_adapter(spec: ModelSpec, options: PredictOptions | None = None) -> OutputAdapter[DenseOutput]:
    """Return the adapter for the task of a network with one dense output."""
    return TASKS[spec.task](spec, options)
