"""Comparison of two evaluations: what one model loses against another, and whether it is more than chance.

The interval is a paired bootstrap over images: images are drawn with replacement, as many as there are, and both
models are scored on the same draw. The interval shows how much the difference depends on the choice of images, not how
it would be on images of another kind. hotcoco does the resampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploykit.errors import AccuracyError, UsageError, import_extra
from deploykit.runtime.evaluate.coco_metrics import Detections, evaluator
from deploykit.runtime.evaluate.report import DetectionEvaluation, Evaluation, ScoringInputs

__all__ = [
    "CONFIDENCE",
    "AccuracyComparison",
    "Comparison",
    "Interval",
    "check_drop",
    "compare_evaluations",
    "compared",
    "interval_of",
]

CONFIDENCE = 0.95
DRAWS = 1000
SEED = 0
NO_DRAWS = "there are no intervals of oriented boxes: hotcoco, which draws the images, has another overlap"

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Comparison:
    """``model`` against ``reference``, on the same images.

    ``difference``: the model's metrics minus the reference's, for the metrics that both have. ``notes``: what a reader
    of the differences must know.
    """

    model: Evaluation
    reference: Evaluation
    difference: dict[str, float]
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def to_dict(self) -> dict[str, Any]:
        """Return what the comparison adds to the model's own evaluation, ready for ``json.dumps``."""
        return {"against": self.reference.to_dict(), "difference": self.difference}


@dataclass(frozen=True, eq=False)
class AccuracyComparison(Comparison):
    """A comparison of detectors.

    ``difference`` is in fractions; ``per_class`` is the difference of AP per category. ``intervals`` are those of the
    differences, from ``samples`` draws (empty: no draws).
    """

    model: DetectionEvaluation
    reference: DetectionEvaluation
    per_class: dict[str, float]
    intervals: dict[str, Interval]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Comparison.to_dict`."""
        return {
            **super().to_dict(),
            "difference_per_class": self.per_class,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "bootstrap": {"samples": self.samples, "confidence": CONFIDENCE, "seed": SEED},
            "comparison_notes": list(self.notes),
        }


def compared(model: Evaluation, reference: Evaluation, *, samples: int | None = None) -> Comparison:
    """Compare two evaluations of one task on the same images, for any task.

    Args:
        model, reference: the two evaluations.
        samples: draws of the bootstrap; None: 1000 for detectors, none for other tasks, which have no intervals.

    Raises:
        UsageError: they cannot be compared, or ``samples`` is given for a task without intervals.
    """
    if isinstance(model, DetectionEvaluation) and isinstance(reference, DetectionEvaluation):
        return compare_evaluations(model, reference, samples=DRAWS if samples is None else samples)
    if model.task != reference.task:
        raise UsageError(f"expected two evaluations of one task, got {model.task} and {reference.task}")
    if samples:
        raise UsageError(f"intervals exist only for detections, but this task is {model.task}")
    names = [name for name in model.metrics if name in reference.metrics]
    return Comparison(model, reference, {name: model.metrics[name] - reference.metrics[name] for name in names})


def compare_evaluations(
    model: DetectionEvaluation, reference: DetectionEvaluation, *, samples: int = 0
) -> AccuracyComparison:
    """Compare two evaluations on the same annotations.

    Args:
        model, reference: two evaluations of one task, on the same images and categories.
        samples: draws of the bootstrap; 0: no intervals.

    Raises:
        UsageError: tasks, images or categories differ, or the number of draws is negative.
        MissingDependencyError: intervals without hotcoco.
    """
    a, b = model.scored, reference.scored
    if model.task != reference.task or a.image_ids != b.image_ids or set(a.category_ids) != set(b.category_ids):
        raise UsageError("two evaluations can be compared only if their task, images and categories are the same")
    if samples < 0:
        raise UsageError(f"the number of bootstrap draws must be at least 0, got {samples}")
    difference = {
        name: value - reference.metrics[name]
        for name, value in model.metrics.items()
        if value >= 0 and reference.metrics[name] >= 0
    }
    per_class = {
        name: score.ap - reference.per_class[name].ap
        for name, score in model.per_class.items()
        if name in reference.per_class and score.ap >= 0 and reference.per_class[name].ap >= 0
    }
    notes = _unlike(model, reference)
    if samples and a.kind == "oriented":
        samples, notes = 0, (*notes, NO_DRAWS)
    intervals = _intervals(a, reference.detections, model.detections, samples) if samples else {}
    intervals = {name: interval for name, interval in intervals.items() if name in difference}
    return AccuracyComparison(model, reference, difference, per_class, intervals, samples, notes=notes)


def interval_of(found: DetectionEvaluation, *, samples: int) -> dict[str, Interval]:
    """Return the bootstrap interval of each metric of one model: that of its difference from no detections.

    Raises:
        MissingDependencyError: hotcoco is not installed. UsageError: its objects are oriented boxes.
    """
    if found.scored.kind == "oriented":
        raise UsageError(f"{NO_DRAWS}; leave --bootstrap out")
    keypoints = None if found.detections.keypoints is None else found.detections.keypoints[:0]
    nothing = Detections(*(getattr(found.detections, n)[:0] for n in ("image_ids", "category_ids", "boxes", "scores")))
    nothing = Detections(nothing.image_ids, nothing.category_ids, nothing.boxes, nothing.scores, keypoints)
    intervals = _intervals(found.scored, nothing, found.detections, samples)
    return {name: interval for name, interval in intervals.items() if found.metrics.get(name, -1.0) >= 0}


def check_drop(comparison: Comparison, max_drop: float, *, metric: str = "AP") -> float:
    """Return the drop of a metric in points (hundredths), and refuse a drop larger than allowed.

    Raises:
        AccuracyError: the model loses more than ``max_drop`` points. UsageError: the metric has no value.
    """
    if not math.isfinite(max_drop) or max_drop < 0:
        raise UsageError(f"the allowed drop must be at least 0 points, got {max_drop}")
    if metric not in comparison.difference:
        raise UsageError(f"{metric} has no value: the images have nothing that it counts")
    drop = -100.0 * comparison.difference[metric]
    if drop > max_drop:
        before, after = (100.0 * found.metrics[metric] for found in (comparison.reference, comparison.model))
        raise AccuracyError(
            f"{metric} falls from {before:.2f} to {after:.2f}, by {drop:.2f} points{_within(comparison, metric)}; "
            f"{max_drop:g} are allowed (--max-drop), so nothing was kept. Keep more layers in higher precision, "
            "calibrate with more images, or allow more"
        )
    return drop


def _within(comparison: Comparison, metric: str) -> str:
    if not isinstance(comparison, AccuracyComparison) or metric not in comparison.intervals:
        return ""
    low, high = (100.0 * value for value in comparison.intervals[metric])
    return f" (95 % interval of the difference {low:+.2f} to {high:+.2f})"


def _intervals(scored: ScoringInputs, before: Detections, after: Detections, samples: int) -> dict[str, Interval]:
    hotcoco = import_extra("hotcoco", "eval")
    runs = [
        evaluator(
            scored.truth,
            found,
            kind=scored.kind,
            image_ids=scored.image_ids,
            category_ids=scored.category_ids,
            sigmas=scored.sigmas,
        )
        for found in (before, after)
    ]
    found = hotcoco.compare(*runs, n_bootstrap=samples, seed=SEED, confidence=CONFIDENCE)["ci"] or {}
    bounds = {name: (float(ci["lower"]), float(ci["upper"])) for name, ci in found.items()}
    return {name: bound for name, bound in bounds.items() if np.isfinite(bound).all()}


def _unlike(model: DetectionEvaluation, reference: DetectionEvaluation) -> tuple[str, ...]:
    """Return notes on settings in which the two differ, so that the difference is not the model's alone."""
    notes = []
    for name in ("conf", "iou", "max_det", "multi_label", "nms", "size", "rectangles"):
        ours, theirs = getattr(model.settings, name), getattr(reference.settings, name)
        if ours != theirs:
            notes.append(f"settings differ: {name} is {ours} here and {theirs} in the reference")
    return tuple(notes)
