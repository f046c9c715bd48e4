"""Curves of an evaluation as images, drawn by matplotlib without a display, and their values as JSON.

The colours are those of Okabe and Ito (2008), which people with any kind of colour vision can distinguish.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.atomic import write_atomic
from deploykit.errors import import_extra, os_errors_as_output_errors
from deploykit.runtime.arrays import Array
from deploykit.runtime.evaluate.coco_metrics import Curve
from deploykit.runtime.evaluate.report import DetectionEvaluation

__all__ = ["F1Curve", "f1_curve", "write_plots"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RECALLS = np.linspace(0.0, 1.0, 101)
SCORES = np.linspace(0.0, 1.0, 1001)
FEW = 6  # up to this many classes get a curve each
BARS = 40  # classes in the plot of AP per class


@dataclass(frozen=True, eq=False)
class F1Curve:
    """Precision, recall and F1 over the score threshold at an IoU of 0.5, mean over classes: ``scores, precision,
    recall, f1``, each ``(1001,)``; ``best`` is the threshold with the highest F1."""

    scores: Array
    precision: Array
    recall: Array
    f1: Array

    @property
    def best(self) -> tuple[float, float]:
        """Return the threshold with the highest mean F1 (the lowest of several), and that F1."""
        i = int(self.f1.argmax())
        return float(self.scores[i]), float(self.f1[i])


def write_plots(
    folder: Path, evaluations: Mapping[str, DetectionEvaluation], *, overlaps: Sequence[float] = (0.5, 0.75)
) -> list[Path]:
    """Draw one or two evaluations of the same annotations.

    ``precision-recall.png`` (the mean over classes at each IoU and over all ten; one curve per class if there are
    few), ``f1.png`` (precision, recall and F1 over the score, at an IoU of 0.5), ``classes.png`` (AP per class, at most
    the lowest 40) and ``curves.json``, which has the values.

    Args:
        folder: created if it does not exist.
        evaluations: name -> evaluation, drawn in this order.
        overlaps: IoU thresholds of the precision-recall curves, from 0.5 to 0.95 in steps of 0.05.

    Returns:
        The written files.

    Raises:
        MissingDependencyError: matplotlib is not installed. OutputError: the folder cannot be written.
    """
    matplotlib = import_extra("matplotlib", "eval")
    figures: dict[str, Callable[[Any], None]] = {
        "precision-recall.png": lambda axes: _precision_recall(axes, evaluations, overlaps),
        "f1.png": lambda axes: _f1(axes, evaluations),
        "classes.png": lambda axes: _classes(axes, evaluations),
    }
    with os_errors_as_output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in figures.items():
        place = folder / name
        with _figure(matplotlib, len(next(iter(evaluations.values())).per_class), name) as (figure, axes):
            draw(axes)
            data = BytesIO()
            figure.savefig(data, format="png", dpi=130, metadata={"Software": None})
            write_atomic(place, data.getvalue(), durable=False)
        written.append(place)
    place = folder / "curves.json"
    write_atomic(place, json.dumps({name: _numbers(e) for name, e in evaluations.items()}).encode())
    return [*written, place]


@contextlib.contextmanager
def _figure(matplotlib: Any, classes: int, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield a figure with its own canvas: no window, and no state shared with other users of matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tall = max(3.2, 0.22 * min(classes, BARS) + 1.2) if name == "classes.png" else 4.8
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.8, tall), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.add_subplot()


def f1_curve(found: DetectionEvaluation) -> F1Curve:
    """Return precision, recall and F1 over the score, mean over the classes that have objects."""
    precision, recall = [], []
    for curve in _known(found).values():
        p, r = _over_scores(curve)
        precision.append(p)
        recall.append(r)
    if not precision:
        nothing = np.zeros(len(SCORES))
        return F1Curve(SCORES, nothing, nothing, nothing)
    pairs = zip(precision, recall, strict=True)
    f1 = [2 * p * r / np.maximum(p + r, 1e-12) for p, r in pairs]
    return F1Curve(SCORES, *(np.mean(values, axis=0) for values in (precision, recall, f1)))


def _over_scores(curve: Curve) -> tuple[Array, Array]:
    """Return precision and recall of one class at an IoU of 0.5 for each score threshold.

    They come from the 101 points of COCO's curve, each with the score at which its recall is reached.
    """
    reached = curve.precision[0] > 0
    scores, precision = curve.scores[0][reached], curve.precision[0][reached]
    if not len(scores):
        return np.zeros(len(SCORES)), np.zeros(len(SCORES))
    index = np.searchsorted(-scores, -SCORES, side="right") - 1  # the last recall whose score is not lower
    none = index < 0
    index = np.maximum(index, 0)
    recall = np.where(none, 0.0, RECALLS[reached][index])
    return np.where(none, 0.0, precision[index]), recall


def _known(found: DetectionEvaluation) -> dict[str, Curve]:
    """Return the curves of the classes that have objects."""
    return {name: curve for name, curve in found.curves.items() if (curve.precision > -1).any()}


def _precision_recall(axes: Any, evaluations: Mapping[str, DetectionEvaluation], overlaps: Sequence[float]) -> None:
    what = "similarity" if next(iter(evaluations.values())).task == "keypoints" else "overlap"
    for number, (name, found) in enumerate(evaluations.items()):
        curves = _known(found)
        prefix = f"{name}, " if len(evaluations) > 1 else ""
        if not curves:
            continue
        stacked = np.stack([curve.precision for curve in curves.values()])
        for k, overlap in enumerate(overlaps):
            row = round((overlap - 0.5) / 0.05)
            label = f"{prefix}{what} {overlap:.2f}: {stacked[:, row].mean():.3f}"
            axes.plot(
                RECALLS, stacked[:, row].mean(0), color=COLOURS[number], ls=("-", "--", ":")[k], label=label, lw=1.8
            )
        mean = stacked.mean((0, 1))
        axes.plot(RECALLS, mean, color=COLOURS[number], ls="-.", lw=1.0, label=f"{prefix}all ten: {stacked.mean():.3f}")
        if 1 < len(curves) <= FEW and len(evaluations) == 1:
            for colour, (label, curve) in zip(COLOURS[1:], curves.items(), strict=False):
                axes.plot(RECALLS, curve.precision[0], color=colour, lw=1.0, label=f"{label}, {overlaps[0]:.2f}")
    axes.set(
        xlabel="recall",
        ylabel="precision",
        xlim=(0, 1),
        ylim=(0, 1.02),
        title="Precision over recall, mean over classes",
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _f1(axes: Any, evaluations: Mapping[str, DetectionEvaluation]) -> None:
    for number, (name, found) in enumerate(evaluations.items()):
        curve, colour = f1_curve(found), COLOURS[number]
        prefix = f"{name}, " if len(evaluations) > 1 else ""
        score, best = curve.best
        axes.plot(
            curve.scores, curve.f1, color=colour, lw=2.0, label=f"{prefix}F1: {best:.3f} at a score of {score:.3f}"
        )
        axes.plot(curve.scores, curve.precision, color=colour, lw=1.0, ls="--", label=f"{prefix}precision")
        axes.plot(curve.scores, curve.recall, color=colour, lw=1.0, ls=":", label=f"{prefix}recall")
        axes.plot([score], [best], "o", color=colour, ms=5)
    axes.set(xlabel="score threshold", xlim=(0, 1), ylim=(0, 1.02), title="F1 at an IoU of 0.5, mean over classes")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _classes(axes: Any, evaluations: Mapping[str, DetectionEvaluation]) -> None:
    first = next(iter(evaluations.values()))
    known = sorted((score.ap, name) for name, score in first.per_class.items() if score.ap >= 0)[:BARS]
    names = [name for _, name in known]
    places = np.arange(len(names), dtype=float)
    height = 0.8 / len(evaluations)
    for number, (name, found) in enumerate(evaluations.items()):
        values = [max(found.per_class[n].ap, 0.0) for n in names]
        offset = (number - (len(evaluations) - 1) / 2) * height
        axes.barh(places + offset, values, height, color=COLOURS[number], label=name)
    labels = [f"{name} ({first.per_class[name].objects})" for name in names]
    axes.set_yticks(places, labels)
    axes.set_ylim(-0.7, max(len(names) - 0.3, 0.7))
    left_out = len([s for s in first.per_class.values() if s.ap >= 0]) - len(names)
    more = f" (the lowest {len(names)}; {left_out} more)" if left_out else ""
    axes.set(xlabel="AP", xlim=(0, 1), title=f"AP of each class, with its number of objects{more}")
    axes.grid(axis="x", alpha=0.3)
    if len(evaluations) > 1:
        axes.legend(frameon=False, loc="lower right")


def _numbers(found: DetectionEvaluation) -> dict[str, Any]:
    curve = f1_curve(found)
    score, best = curve.best
    return {
        "recalls": RECALLS.round(2).tolist(),
        "precision": {name: c.precision.round(6).tolist() for name, c in _known(found).items()},
        "scores": {name: c.scores.round(6).tolist() for name, c in _known(found).items()},
        "f1": {
            "best_score": score,
            "best_f1": best,
            "scores": curve.scores.round(3).tolist(),
            "f1": curve.f1.round(6).tolist(),
            "precision": curve.precision.round(6).tolist(),
            "recall": curve.recall.round(6).tolist(),
        },
    }
