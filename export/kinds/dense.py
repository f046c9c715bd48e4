"""Export adapters of one dense output, by task: how two results are matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from deploykit.export.matching import Matching, MatchKind
from deploykit.export.outputs import ExportAdapter, Packaged
from deploykit.export.parity.dense import Part, match_values, near_levels, near_values, same_classes
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import DenseOutput, ModelSpec

__all__ = ["dense_export"]

Compare = Callable[[Array, Array, Tolerance], Part]


class _DenseExport(ExportAdapter[DenseOutput]):
    """Matches the outputs of each image by ``compare``; ``what`` names the results that are matched."""

    def __init__(self, spec: ModelSpec, what: MatchKind, compare: Compare) -> None:
        super().__init__(spec)
        self._what, self._compare = what, compare

    @property
    def decides(self) -> bool:
        """See :class:`ExportAdapter`."""
        return self._what == "classes"

    def match(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Matching]:
        """See :meth:`ExportAdapter.match`."""
        return [match_values(names, self._what, expected, found, self._compare, limits)]


class _ClassifierExport(_DenseExport):
    """Classes of an image."""

    def packaged(self, first: str, second: str) -> Packaged | None:
        """See :meth:`ExportAdapter.packaged`: probabilities."""
        arrangement: Literal["none", "softmax"] = "none" if self.output.probabilities else "softmax"
        return Packaged(replace(self.output, name=first, probabilities=True), arrangement)


def _classes(spec: ModelSpec) -> _DenseExport:
    return _DenseExport(spec, "classes", same_classes)


def _levels(spec: ModelSpec) -> _DenseExport:
    def compare(a: Array, b: Array, limits: Tolerance) -> Part:
        return near_levels(a, b, spec.input)

    return _DenseExport(spec, "grey levels", compare)


TASKS: dict[str, Callable[[ModelSpec], _DenseExport]] = {
    "classify": partial(_ClassifierExport, what="classes", compare=same_classes),
    "segment": _classes,
    "restore": _levels,
    "features": partial(_DenseExport, what="values", compare=near_values),
}


def dense_export(spec: ModelSpec) -> ExportAdapter[DenseOutput]:
    """Return the adapter for the task of a network with one dense output."""
    return TASKS[spec.task](spec)
