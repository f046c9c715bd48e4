"""The runtime's floor: what an image's result is, and how it is scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Unpack

from deploykit.runtime.arrays import Array
from deploykit.runtime.drawing.panel import draw_lines
from deploykit.runtime.evaluate.image_meter import ImageMeter
from deploykit.runtime.evaluate.meter import Data
from deploykit.runtime.images.placing import CanvasImage
from deploykit.runtime.options import DrawKeywords, EvalOptions
from deploykit.runtime.outputs import OutputAdapter
from deploykit.runtime.results.base import ImageResult
from deploykit.spec import ModelSpec
from tests.counting.output import CountOutput


@dataclass(frozen=True, eq=False, kw_only=True)
class Count(ImageResult):
    """How many things an image shows."""

    count: float

    def draw(self, image: Array | None = None, **options: Unpack[DrawKeywords]) -> Array:
        return draw_lines(self._source(image), [self.summary()])

    def summary(self) -> str:
        return f"{self.count:.1f} of them"

    def _about(self) -> dict[str, Any]:
        return {"count": self.count}


class CountMeter(ImageMeter):
    """The mean absolute error; the truth is a JSON file: file name -> count."""

    def __init__(self, spec: ModelSpec, task: str, data: Data, options: EvalOptions) -> None:
        super().__init__(spec, task, data, options)
        self._truth: dict[str, float] = json.loads(data.truth.read_text())
        assert data.images is not None
        self.paths = [data.images / name for name in self._truth]
        self._errors: dict[str, dict[str, float]] = {}

    def add(self, path: Path, result: ImageResult) -> None:
        assert isinstance(result, Count)
        self._errors[path.name] = {"error": abs(result.count - self._truth[path.name])}

    def metrics(self) -> dict[str, float]:
        return {"MAE": sum(e["error"] for e in self._errors.values()) / len(self._errors)}

    def per_image(self) -> dict[str, dict[str, float]]:
        return self._errors


class CountAdapter(OutputAdapter[CountOutput]):
    result_type = Count
    gives = "their counts"
    done = "counted"
    meters: ClassVar[Mapping[str, Any]] = {"count": CountMeter}

    def decode(self, outputs: Mapping[str, Array], slot: int, shown: CanvasImage) -> Callable[..., ImageResult]:
        return partial(Count, count=float(self.tensor_in(outputs, "an image")[slot, 0]))
