"""Evaluation of semantic segmentation: intersection over union of label maps, by hotcoco."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from deploykit.errors import DataError, import_extra
from deploykit.runtime.evaluate.folders import first_of, pairs_of, stored_size, unturned_images
from deploykit.runtime.evaluate.image_meter import ImageMeter
from deploykit.runtime.evaluate.mask_values import IGNORED, MaskValues, read_label_map
from deploykit.runtime.evaluate.meter import Data, Finished
from deploykit.runtime.evaluate.report import Evaluation
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.dense import LabelMap
from deploykit.spec import ModelSpec

__all__ = ["LabelMapMeter"]

LOOKED_AT = 8  # label maps that are read ahead to learn what 255 means


class LabelMapMeter(ImageMeter):
    """mIoU and related metrics; pixels whose ground truth is the ignored value (255) do not count."""

    takes: ClassVar[frozenset[str]] = frozenset({"ignore_label", "mask_values"})
    metric: ClassVar[str] = "mIoU"

    def __init__(self, spec: ModelSpec, task: str, data: Data, options: EvalOptions) -> None:
        """See :class:`deploykit.runtime.evaluate.meter.Meter`."""
        super().__init__(spec, task, data, options)
        chosen, self.notes = first_of(pairs_of(task, data, "their label maps"), options.limit)
        self._truths = dict(chosen)
        self.paths = [path for path, _ in chosen]
        self.unturned, turned = unturned_images(self.paths, lambda path: stored_size(self._truths[path]), "label maps")
        self.notes += turned
        self._asked, self._folder = options, data.truth
        self._values: MaskValues | None = None
        self._semantic = import_extra("hotcoco.semantic", "eval")
        self._evaluation: Any = None
        self._ignored = 0
        self._empty: list[str] = []
        self._coloured: list[str] = []

    def add(self, path: Path, result: ImageResult) -> None:
        """See :meth:`deploykit.runtime.evaluate.meter.Meter.add`."""
        assert isinstance(result, LabelMap)
        classes, file = result.num_classes, self._truths[path]
        if self._values is None:
            self._values = MaskValues.of(self._asked, classes, self.spec.classes)
            if classes == 2 and not self._values.said:
                self._check_two_values()
            names = list(self.spec.classes) if len(self.spec.classes) == classes else classes
            self._evaluation = self._semantic.SemanticEval(names, ignore_index=classes)
        found, coloured = read_label_map(file, self._asked.max_pixels)
        if found.shape != result.size:
            raise DataError(f"{file} has size {found.shape} (height, width), but its image has {result.size}")
        truth = self._values.labels(found, file)
        ignored = int((truth == classes).sum())
        self._ignored += ignored
        if ignored == truth.size:
            self._empty.append(file.name)
        if coloured:
            self._coloured.append(file.name)
        self._evaluation.update(truth, result.labels.astype(np.int64))

    def evaluation(self, finished: Finished) -> Evaluation:
        """See :meth:`deploykit.runtime.evaluate.meter.Meter.evaluation`.

        Raises:
            DataError: no pixel counts, or no pixel of class 1 where 255 may be what stands for it.
        """
        assert self._values is not None
        truths = np.asarray(self._evaluation.confusion()).sum(1)
        if not truths.sum():
            raise DataError(
                f"no pixel can be scored: all {self._ignored:,} pixels of the label maps in {self._folder} have the "
                f"value {self._values.ignored}, which is ignored (--ignore-label)"
            )
        if len(truths) == 2 and not truths[1] and self._ignored and not self._values.said:
            raise DataError(self._ambiguous())
        if self._empty:
            self.notes += (f"{_of(self._empty, self.paths)} label maps have nothing but ignored pixels",)
        if self._coloured:
            self.notes += (f"{_of(self._coloured, self.paths)} label maps are grey saved as RGB: read as grey",)
        return super().evaluation(finished)

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
        """Return the number of evaluated pixels, and of ignored ones if there are any."""
        counted = {"pixels": int(np.asarray(self._evaluation.confusion()).sum())}
        return {**counted, "ignored": self._ignored} if self._ignored else counted

    def versions(self) -> dict[str, str]:
        """Return the version of hotcoco."""
        from importlib import metadata

        return {"hotcoco": metadata.version("hotcoco")}

    def _check_two_values(self) -> None:
        """Refuse label maps of 0 and 255 alone before any time is spent on them: 255 has two usual meanings."""
        seen: set[int] = set()
        for file in list(self._truths.values())[:LOOKED_AT]:
            seen |= set(np.unique(read_label_map(file, self._asked.max_pixels)[0]).tolist())
        if seen == {0, IGNORED}:
            raise DataError(self._ambiguous())

    def _ambiguous(self) -> str:
        return (
            f"the label maps in {self._folder} hold only 0 and {IGNORED}, and the network has 2 classes: pass "
            f"--mask-values 0,{IGNORED} if {IGNORED} is class 1, or --ignore-label {IGNORED} if it marks pixels that "
            "do not count"
        )

    def _report(self) -> dict[str, Any]:
        report: dict[str, Any] = self._evaluation.report()
        return report


def _of(names: list[str], everything: Sequence[Path]) -> str:
    told = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} of the {len(everything)} ({told})"
