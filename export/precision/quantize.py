"""Quantization of a verified fp32 graph: calibration, the choice of layers to exclude, and the conversion."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import onnx_ir as ir

from deploykit.errors import ExportError
from deploykit.export.options import CalibrationMethod, Int8Target, KeepAs, PrecisionOptions, QuantKind
from deploykit.export.precision.attention import attention_in_half
from deploykit.export.precision.calibration import Activations, calibration_images, choose_method
from deploykit.export.precision.folds import Changes, apply_changes, digest_of_changes
from deploykit.export.precision.folds.choose import FOLDS, FoldReport, choose_folds
from deploykit.export.precision.folds.correct import CorrectionReport
from deploykit.export.precision.qdq import QuantizationResult, quantisable
from deploykit.export.precision.search.names import label_of
from deploykit.export.precision.sensitivity import (
    Ranking,
    Sensitivity,
    choose_keep,
    named_layers,
    quantize_as,
)
from deploykit.export.precision.trials import COMPARED, Trials
from deploykit.progress import SILENT, Progress
from deploykit.spec import ModelSpec

__all__ = ["QuantReport", "quantize_graph"]

HOW_KEPT = {
    "measurement": "chosen by measurement",
    "name": "chosen by name",
    "accuracy": "chosen by measurement, and so many further ones that --max-drop holds",
    "nobody": "none was looked for (--keep none)",
}
"""How the layers that stay in floating point were chosen -> what the report says of it."""
FOR_CPU = "to uint8 with zero points, for ONNX Runtime's integer kernels: TensorRT refuses this file"


@dataclass(frozen=True)
class QuantReport:
    """The result of a quantization.

    ``errors`` is the error of the outputs by calibration method, for the methods that were compared. ``error`` is the
    error without the excluded layers (see :meth:`deploykit.export.outputs.ExportAdapter.error`) and ``whole`` that with
    every layer quantized, on more images where methods are compared on few.
    ``images`` is how many images were used, ``names_sha256`` a hash of their names. ``labels`` maps a layer to its name
    in the network. ``folds`` is what was folded before; None: nothing can be. ``corrected`` is what was corrected last;
    None: nothing was tried. ``attention``: how many attentions are fp16, of how many.
    """

    kind: QuantKind
    method: CalibrationMethod
    errors: dict[str, float]
    images: int
    names_sha256: str
    cached: bool
    done: QuantizationResult
    labels: dict[str, str]
    kept_by: str
    sensitivity: Sensitivity | None
    error: float
    whole: float
    ranges: dict[str, float]
    reduce_range: bool
    target: Int8Target = "any"
    keep_as: KeepAs = "fp32"
    folds: FoldReport | None = None
    attention: tuple[int, int] = (0, 0)
    corrected: CorrectionReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return dataclasses.asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines for the screen: a label and a sentence each."""
        methods = ", ".join(f"{name} {error:.3g}" for name, error in self.errors.items())
        compared = f"; error of the outputs by method: {methods}" if len(self.errors) > 1 else ""
        cached = ", measured earlier" if self.cached else ""
        kept = f": {', '.join(map(self._named, self.done.kept))}" if self.done.kept else ""
        error = f"; error of the outputs {self.error:.3g}"
        if self.error != self.whole:
            error += f" instead of {self.whole:.3g}"
        return [
            *([("rounded", f"{len(self.done.tensors)} tensors, {FOR_CPU}")] if self.target == "cpu" else []),
            *([("attention", f"{self.attention[0]} of {self.attention[1]} in fp16")] if self.attention[1] else []),
            *([("folded", self.folds.line())] if self.folds is not None else []),
            ("ranges", f"{self.method}, {self.images} images{cached}{compared}"),
            (
                "not quantized",
                f"{len(self.done.kept)} of {len(self.done.kept) + len(self.done.layers)} layers, "
                f"{HOW_KEPT[self.kept_by]}{error}{kept}",
            ),
            *self._search(),
            *([("corrected", self.corrected.line())] if self.corrected is not None else []),
        ]

    def _named(self, layer: str) -> str:
        """A layer that stays, with its share of the error where that was measured."""
        if self.sensitivity is None:
            return self.labels[layer]
        return f"{self.labels[layer]} ({self.sensitivity.layers[layer] / self.sensitivity.whole:.1%})"

    def _search(self) -> list[tuple[str, str]]:
        """The line of the networks that were run to find how many layers stay."""
        if self.sensitivity is None:
            return []
        tried = ", ".join(f"{count} {error:.3g}" for count, error in sorted(self.sensitivity.tried.items()))
        images = f"{self.sensitivity.images} images" if self.sensitivity.images > 1 else "1 image"
        return [
            ("search", f"error on {images} by how many layers stay, those of the largest shares (%) first: {tried}")
        ]


def quantize_graph(
    model: ir.Model, base: Path, spec: ModelSpec, options: PrecisionOptions, progress: Progress = SILENT
) -> QuantReport:
    """Quantize ``model`` in place.

    Args:
        model: the graph.
        base: the file of the same graph with raw rows, in fp32.
        spec: the spec of that file, whose preprocessing is used.
        options: int8 or fp8, the calibration images and the layers to exclude.
        progress: receives the steps (ranges, comparing METHOD, layers) and how far they are.

    Raises:
        DataError, NotFoundError, ImageError: the calibration images cannot be used. UsageError: an unknown layer.
        ExportError: the graph has no layer to quantize.
    """
    kind, calibration, exclude = options.quantised, options.calibration, options.nodes_to_exclude
    assert kind is not None and calibration is not None  # noqa: PT018  (PrecisionOptions checks it)
    trials = Trials(model, base, spec, options, calibration_images(calibration, spec, COMPARED))
    if not quantisable(model.graph):
        raise ExportError(f"the graph has no convolution or matrix product with constant weights to quantize to {kind}")
    tried = [fold for fold in FOLDS if options.tries(fold.name)]
    few = trials.images[: trials.few]
    changes, folds = choose_folds(model, few, trials.error_with, trials.peaks, folds=tried, progress=progress)
    named = () if isinstance(exclude, str) else named_layers(model, exclude)
    found, folds = _calibrate(trials, changes, folds, progress)
    trials.settle()
    layers = quantisable(model.graph)
    labels = {str(node.name): label_of(node) for node in layers}  # before a quantized weight takes the place of theirs
    method, by_image, ranges = found.method, found.by_image, found.ranges
    errors = {name: fmean(values) for name, values in by_image.items()}
    sensitivity, error = None, errors[method]
    if exclude == "auto":
        progress.step("layers")
        named, error, sensitivity = _kept_by_measurement(trials, layers, ranges, by_image[method], progress)
    elif named:
        error = fmean(trials.errors(ranges, named, slice(trials.few)))
    whole = trials.error_on_all(ranges, (), errors[method])
    corrections, corrected, error = trials.corrections(ranges, named, error)
    apply_changes(model, corrections)
    done = quantize_as(model, ranges, spec, options, named, trials.largest)
    return QuantReport(
        attention=attention_in_half(model, trials.largest) if options.target == "any" else (0, 0),
        kind=kind,
        method=method,
        errors=errors,
        images=found.activations.images,
        names_sha256=hashlib.sha256("\n".join(p.name for p in calibration.images()).encode()).hexdigest(),
        cached=found.activations.cached,
        done=done,
        labels=labels,
        kept_by={"auto": "measurement", "none": "nobody"}.get(str(exclude), "name"),
        keep_as=options.keep_as,
        sensitivity=sensitivity,
        error=error,
        whole=whole,
        ranges=ranges,
        reduce_range=options.reduce_range,
        target=options.target,
        folds=folds,
        corrected=corrected,
    )


class _Calibrated(NamedTuple):
    """What was measured on all images, the method, the errors of the methods by few image, and its ranges."""

    activations: Activations
    method: CalibrationMethod
    by_image: Mapping[str, Sequence[float]]
    ranges: dict[str, float]

    @property
    def error(self) -> float:
        """The mean error with every layer quantized."""
        return fmean(self.by_image[self.method])


def _calibrate(
    trials: Trials, changes: Changes, folds: FoldReport | None, progress: Progress
) -> tuple[_Calibrated, FoldReport | None]:
    """Calibrate, and drop folds with which the error is not lower once all images give the ranges.

    ``trials`` then has the changes that stay.
    """
    given = trials.options.calibration
    assert given is not None
    progress.step("ranges")
    measured = trials.calibrated(changes, progress)

    def errors_with(ranges: Mapping[str, float], of: slice) -> list[float]:
        return trials.errors(ranges, (), of)

    def compared(changes: Changes, best: Sequence[float] = ()) -> _Calibrated:
        trials.changes, activations = changes, measured[digest_of_changes(changes)]
        trials.largest = activations.largest
        with trials.in_one_network():
            return _Calibrated(activations, *choose_method(activations, given, errors_with, progress, best, trials.few))

    found = compared(changes)
    if folds is None or not folds.taken:
        return found, folds
    progress.step("ranges without folds")
    measured |= {} if digest_of_changes({}) in measured else trials.calibrated({}, progress)
    plain = compared({}, found.by_image[found.method])
    if len(plain.by_image[plain.method]) >= trials.few and plain.error <= found.error:
        return plain, folds.without()
    trials.changes, trials.largest = changes, found.activations.largest
    return found, folds


def _kept_by_measurement(
    trials: Trials,
    layers: Sequence[ir.Node],
    ranges: Mapping[str, float],
    whole: Sequence[float],
    progress: Progress,
) -> tuple[tuple[str, ...], float, Sensitivity]:
    """Return the layers that are not quantized, the error with them, and what was measured, all on the few images.

    ``whole``: the error on each of these with every layer quantized.
    """
    ranking = Ranking([str(node.name) for node in layers], lambda kept: trials.parts(ranges, kept, whole, progress))
    named, tried = choose_keep(
        fmean(whole),
        ranking,
        lambda kept: fmean(trials.errors(ranges, kept, slice(trials.few))),
        progress=progress,
    )
    return named, tried[len(named)], Sensitivity(fmean(whole), ranking.layers, trials.few, tried)
