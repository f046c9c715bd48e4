"""Which folds are taken: those with which the quantized outputs are measured to be nearer to the exact ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
from torch import Tensor

from deploykit.errors import FoldError
from deploykit.export.precision.folds import Changes, Fold, apply_changes, joined_changes
from deploykit.export.precision.folds.equalise import Equalise
from deploykit.export.precision.folds.smooth import Smooth
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array

__all__ = ["FOLDS", "FoldReport", "check_same", "choose_folds"]

FOLDS: tuple[Fold, ...] = (Equalise(), Smooth())
"""All folds, in the order in which they are tried."""

WORTHWHILE = 0.98
"""A fold is taken if the error is at most this share of the error without it: less is chance."""

WORTH_NODES = 0.9
"""The same of a candidate that adds nodes, which take time, against the best one that adds none."""

ErrorWith = Callable[[Changes, Mapping[str, tuple[str, Array]] | None], float]
"""See :func:`choose_folds`."""

TOLERANCE = 1e-5
"""How far outputs in fp32 may move, as a share of the largest value of the output."""


@dataclass(frozen=True)
class FoldReport:
    """What was tried and taken.

    ``taken`` are the names of the candidates whose changes the graph has; ``errors`` candidate -> the error of the
    quantized outputs with it and with what was taken before it; ``none`` is the error without folds. Ranges are those
    of the images of the comparison. ``dropped`` are candidates with which the error was not lower with the ranges of
    all images.
    """

    taken: tuple[str, ...]
    errors: dict[str, float]
    dropped: tuple[str, ...] = ()

    def without(self) -> FoldReport:
        """Return the report of a network that has none of them after all."""
        return replace(self, taken=(), dropped=self.taken)

    def line(self) -> str:
        """Return the sentence for the screen."""
        tried = ", ".join(f"{name} {error:.3g}" for name, error in self.errors.items())
        taken = "; ".join(self.taken) or "none"
        dropped = f", not with those of all images: {'; '.join(self.dropped)} was left out" if self.dropped else ""
        return (
            f"{taken} (verified in fp32); error of the outputs by what was tried, with ranges of the images it is "
            f"measured on: {tried}{dropped}"
        )


def choose_folds(
    graph: ir.Model,
    images: Sequence[Array],
    error_with: ErrorWith,
    peaks_of: Callable[[Changes, Collection[str]], Mapping[str, Array]] = lambda changes, tensors: {},
    *,
    folds: Sequence[Fold] = FOLDS,
    progress: Progress = SILENT,
) -> tuple[Changes, FoldReport | None]:
    """Return the changes of the best candidates, one of each fold at most, and the report; None: no fold applies.

    Args:
        graph: the float32 graph, which stays as it is.
        images: preprocessed images, one batch each.
        error_with: returns the error of the quantized outputs with these changes, and with what is known of the
            tensors that are scaled (:class:`Candidate`); without that, it verifies the graph with the changes.
        peaks_of: returns the largest values of the channels of these tensors with changes.
        folds: the folds to try.
        progress: receives which fold is tried.

    Raises:
        FoldError: a fold changed what the network computes.
    """
    changes: Changes = {}
    taken: list[str] = []
    errors: dict[str, float] = {}
    for fold in folds:
        if not fold.applies(graph):
            continue
        progress.step(f"folds: {fold.name}")
        now = graph if not changes else _changed(graph, changes)
        best: tuple[str, Changes] | None = None
        wanted = fold.channels(now)
        for candidate in fold.candidates(now, images, peaks_of(changes, wanted) if wanted else {}):
            if not errors:
                errors["none"] = error_with({}, None)
            name = f"{fold.name} {candidate.name}"
            both = joined_changes(changes, candidate.changes)
            errors[name] = error_with(both, None if changes else candidate.scaled)
            least = errors[best[0]] if best else errors[taken[-1]] if taken else errors["none"]
            worthwhile = WORTH_NODES if candidate.nodes else 1.0 if best else WORTHWHILE
            if errors[name] <= worthwhile * (math.inf if math.isnan(least) else least):
                best = name, both
        if best is not None:
            taken.append(best[0])
            changes = best[1]
    return changes, FoldReport(tuple(taken), errors) if errors else None


def _changed(graph: ir.Model, changes: Changes) -> ir.Model:
    new = graph.clone()
    apply_changes(new, changes)
    return new


def check_same(what: str, exact: Sequence[Mapping[str, Tensor]], found: Sequence[Mapping[str, Tensor]]) -> None:
    """Check that a folded graph computes in fp32 what the graph did before.

    Raises:
        FoldError: an output moved by more than :data:`TOLERANCE` of its largest value.
    """
    for before, after in zip(exact, found, strict=True):
        for name, value in before.items():
            if not value.is_floating_point():
                continue
            moved, largest = float((after[name] - value).abs().max()), float(value.abs().max())
            if not moved <= TOLERANCE * max(largest, 1e-30):
                raise FoldError(
                    f"{what} moved the output {name!r} by up to {moved:.3g}, {moved / max(largest, 1e-30):.2g} of its "
                    f"largest value: expected at most {TOLERANCE:g}"
                )
