"""Evaluation of semantic segmentation: intersection over union of label maps, by hotcoco."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import DataError, import_extra
from deploykit.runtime.arrays import Array
from deploykit.runtime.evaluate.folders import first_of, pairs_of
from deploykit.runtime.evaluate.image_meter import ImageMeter
from deploykit.runtime.evaluate.meter import Data
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.dense import LabelMap
from deploykit.spec import ModelSpec

__all__ = ["LabelMapMeter"]

IGNORED = 255


class LabelMapMeter(ImageMeter):
    """mIoU and related metrics; pixels whose ground truth is 255 are ignored."""

    def __init__(self, spec: ModelSpec, task: str, data: Data, options: EvalOptions) -> None:
        """See :class:`deploykit.runtime.evaluate.meter.Meter`."""
        super().__init__(spec, task, data, options)
        chosen, self.notes = first_of(pairs_of(task, data, "their label maps"), options.limit)
        self._truths = dict(chosen)
        self.paths = [path for path, _ in chosen]
        self._semantic = import_extra("hotcoco.semantic", "eval")
        self._evaluation: Any = None

    def add(self, path: Path, result: ImageResult) -> None:
        """See :meth:`deploykit.runtime.evaluate.meter.Meter.add`."""
        assert isinstance(result, LabelMap)
        classes, file = result.num_classes, self._truths[path]
        if self._evaluation is None:
            names = list(self.spec.classes) if len(self.spec.classes) == classes else classes
            self._evaluation = self._semantic.SemanticEval(names, ignore_index=IGNORED)
        truth = _labels_in(file)
        if truth.shape != result.size:
            raise DataError(f"{file} has size {truth.shape} (height, width), but its image has {result.size}")
        beyond = truth[(truth >= classes) & (truth != IGNORED)]
        if beyond.size:
            raise DataError(
                f"{file} has the label {int(beyond[0])}, but the network has {classes} classes (255 is ignored)"
            )
        self._evaluation.update(truth.astype(np.int64), result.labels.astype(np.int64))

    def metrics(self) -> dict[str, float]:
        """Return ``mIoU mAcc aAcc fwIoU``, and ``Dice`` for two classes."""
        found = {name: float(value) for name, value in self._report()["metrics"].items()}
        confusion = np.asarray(self._evaluation.confusion(), np.float64)
        if len(confusion) == 2:
            found["Dice"] = float(2 * confusion[1, 1] / max(confusion[1].sum() + confusion[:, 1].sum(), 1.0))
        return found

    def per_class(self) -> dict[str, dict[str, float]]:
        """Return the metrics of each class."""
        return {name: {k: float(v) for k, v in values.items()} for name, values in self._report()["per_class"].items()}

    def counts(self) -> dict[str, int]:
        """Return the number of evaluated pixels."""
        return {"pixels": int(np.asarray(self._evaluation.confusion()).sum())}

    def versions(self) -> dict[str, str]:
        """Return the version of hotcoco."""
        from importlib import metadata

        return {"hotcoco": metadata.version("hotcoco")}

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = self._evaluation.report()
        return report


def _labels_in(file: Path) -> Array:
    """Read a label map ``(H, W)``: grey values, or the indices of a palette.

    OpenCV turns palette indices into colours, so Pillow reads files that have a palette.
    """
    image = import_extra("PIL.Image", "eval")
    try:
        with image.open(file) as opened:
            if opened.mode not in ("L", "P", "I", "I;16", "1"):
                raise DataError(f"a label map must have one channel or a palette, but {file} is {opened.mode}")
            return np.array(opened).astype(np.int64)
    except OSError as e:
        raise DataError(f"cannot read the label map {file}: {e}") from e
