"""Accuracy of classifiers: the share of images whose class has the best score, or one of the best five."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from deploykit.errors import DataError, UsageError
from deploykit.runtime.evaluate.folders import class_folders, existing_folder, first_of, split_folder
from deploykit.runtime.evaluate.image_meter import ImageMeter
from deploykit.runtime.evaluate.meter import Data
from deploykit.runtime.options import EvalOptions
from deploykit.runtime.results.base import ImageResult
from deploykit.runtime.results.dense import Classification
from deploykit.spec import ModelSpec

__all__ = ["ClassMeter"]


class ClassMeter(ImageMeter):
    """Top-1 and top-5 accuracy on images in one folder per class."""

    takes: ClassVar[frozenset[str]] = frozenset({"split"})
    metric: ClassVar[str] = "top1"

    def __init__(self, spec: ModelSpec, task: str, data: Data, options: EvalOptions) -> None:
        """See :class:`deploykit.runtime.evaluate.meter.Meter`."""
        super().__init__(spec, task, data, options)
        if data.images is not None:
            raise UsageError(
                "classification takes one folder that has a folder of images per class: leave --images out"
            )
        root, which = split_folder(existing_folder(data.truth, "folders of classes"), options.split)
        chosen, left_out = first_of(class_folders(root, spec.classes), options.limit)
        self.notes = (*which, *left_out)
        self._labels = dict(chosen)
        self.paths = [path for path, _ in chosen]
        self._seen: list[tuple[int, bool, bool]] = []

    def add(self, path: Path, result: ImageResult) -> None:
        """See :meth:`deploykit.runtime.evaluate.meter.Meter.add`."""
        assert isinstance(result, Classification)
        label = self._labels[path]
        if label >= result.num_classes:
            raise DataError(
                f"{path} has class {label}, but the network has only the classes 0 to {result.num_classes - 1}"
            )
        self._seen.append((label, bool(result.labels[0] == label), bool((result.labels == label).any())))

    def metrics(self) -> dict[str, float]:
        """``top1`` and ``top5``."""
        return _shares(self._seen)

    def per_class(self) -> dict[str, dict[str, float]]:
        """The same per class, with the number of its images."""
        names = self.spec.classes
        return {
            names[label] if label < len(names) else str(label): {
                **_shares([s for s in self._seen if s[0] == label]),
                "images": sum(s[0] == label for s in self._seen),
            }
            for label in sorted({label for label, _, _ in self._seen})
        }

    def counts(self) -> dict[str, int]:
        """The number of classes."""
        return {"classes": len({label for label, _, _ in self._seen})}


def _shares(seen: list[tuple[int, bool, bool]]) -> dict[str, float]:
    return {"top1": sum(s[1] for s in seen) / len(seen), "top5": sum(s[2] for s in seen) / len(seen)}
