"""Quantization of a verified fp32 graph: calibration, the choice of layers to exclude, and the conversion."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.errors import ExportError
from deploykit.export.graph.passes import drop_weights
from deploykit.export.options import Calibration, CalibrationMethod, Int8Target, KeepAs, PrecisionOptions, QuantKind
from deploykit.export.outputs import export_adapter_of
from deploykit.export.precision.attention import attention_cores, attention_in_half, measured_of
from deploykit.export.precision.calibration import (
    Activations,
    calibration_images,
    choose_method,
    measure_activations,
    spread_numbers,
    unseen_images,
)
from deploykit.export.precision.contributions import contributions_of
from deploykit.export.precision.cpu_int8 import rounded_tensors
from deploykit.export.precision.folds import Changes, apply_changes, digest_of_changes, joined_changes
from deploykit.export.precision.folds.choose import FOLDS, FoldReport, check_same, choose_folds
from deploykit.export.precision.folds.correct import CorrectionReport, choose_corrections
from deploykit.export.precision.qdq import QuantizationResult, activations_of, quantisable, weight_of
from deploykit.export.precision.search.journal import Journal, digest_of_file
from deploykit.export.precision.search.names import label_of
from deploykit.export.precision.sensitivity import (
    Sensitivity,
    choose_keep,
    errors_of,
    measure_sensitivity,
    named_layers,
    outputs_of,
    quantize_as,
)
from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.spec import ModelSpec

__all__ = ["QuantReport", "quantize_graph"]

EVERY = slice(None)
RANKED = 3  # images of the run that ranks layers
CORRECTED = 2  # images of the run that corrects the order of those that are not first
COMPARED = 4  # images on which calibration methods are compared
HOW_KEPT = {
    "measurement": "chosen by measurement",
    "name": "chosen by name",
    "accuracy": "chosen by measurement, and so many further ones that --max-drop holds",
    "nobody": "none was looked for (--keep none)",
}
"""How the layers that stay in floating point were chosen -> what the report says of it."""
FOR_CPU = "to uint8 with zero points, for ONNX Runtime's integer kernels: TensorRT refuses this file"
MEASURED = 4 * 640 * 640  # pixels of the images on which layers are measured


@dataclass(frozen=True)
class QuantReport:
    """The result of a quantization.

    ``errors`` is the error of the outputs by calibration method, for the methods that were compared. ``error`` is the
    error without the excluded layers (see :meth:`deploykit.export.outputs.ExportAdapter.error`); None: not measured.
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
    error: float | None
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
        error = "" if self.error is None else f"; error of the outputs {self.error:.3g}"
        if self.error is not None and self.error != self.errors[self.method]:
            error += f" instead of {self.errors[self.method]:.3g}"
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
    trials = _Trials(model, base, spec, options, calibration_images(calibration, spec, COMPARED))
    if not quantisable(model.graph):
        raise ExportError(f"the graph has no convolution or matrix product with constant weights to quantize to {kind}")
    tried = [fold for fold in FOLDS if options.tries(fold.name)]
    trials.changes, folds = choose_folds(model, trials.images, trials.error_with, folds=tried, progress=progress)
    apply_changes(model, trials.changes)
    rows = trials.graph()
    layers = quantisable(rows.graph)
    named = () if isinstance(exclude, str) else named_layers(rows, exclude)
    progress.step("ranges")
    found = _measured(rows, trials, calibration, progress, cache=options.cache)
    _forget(rows)
    method, by_image, ranges = choose_method(found, calibration, trials.errors, progress)
    errors = {name: fmean(values) for name, values in by_image.items()}
    sensitivity, error = None, errors[method]
    if exclude == "auto":
        progress.step("layers")
        named, error, sensitivity = _kept_by_measurement(trials, layers, ranges, by_image[method], progress)
    elif named:
        error = fmean(trials.errors(ranges, named))
    corrections, corrected = trials.corrections(ranges, named, error)
    apply_changes(model, corrections)
    done = quantize_as(model, ranges, spec, options, named, found.largest)
    return QuantReport(
        attention=attention_in_half(model, found.largest) if options.target == "any" else (0, 0),
        kind=kind,
        method=method,
        errors=errors,
        images=found.images,
        names_sha256=hashlib.sha256("\n".join(p.name for p in calibration.images()).encode()).hexdigest(),
        cached=found.cached,
        done=done,
        labels={str(node.name): label_of(node) for node in layers},
        kept_by={"auto": "measurement", "none": "nobody"}.get(str(exclude), "name"),
        keep_as=options.keep_as,
        sensitivity=sensitivity,
        error=corrected.after if corrected is not None and corrections else error,
        ranges=ranges,
        reduce_range=options.reduce_range,
        target=options.target,
        folds=folds,
        corrected=corrected,
    )


class _Trials:
    """Quantized networks that are run on the images of a comparison.

    ``model`` is the graph that becomes the file, with the folds that were chosen: its weights are in memory anyway, so
    what weights were before is looked up there. ``exact`` are the outputs before by image; ``largest`` is what was
    measured of tensors. ``changes`` are the folds that every network has. ``journal`` has what an earlier search has
    measured, also one that was killed. ``few`` is how many of the first images are enough to compare layers.
    """

    def __init__(
        self, model: ir.Model, base: Path, spec: ModelSpec, options: PrecisionOptions, images: Sequence[Array]
    ) -> None:
        self.model, self.base, self.spec, self.options, self.images = model, base, spec, options, images
        self.exact: list[dict[str, Tensor]] = []
        self.largest: Mapping[str, float] = {}
        about = {"spec": spec.to_json(), "options": repr(replace(options, nodes_to_exclude="auto", keep_file=None))}
        self.journal = Journal.of(digest_of_file(base), images, about) if options.cache else Journal(None)
        self.changes: Changes = {}
        self.few = min(len(images), max(2, round(MEASURED / (spec.input.size[0] * spec.input.size[1]))))

    def graph(self, changes: Changes | None = None) -> ir.Model:
        """Return the graph with raw rows, in fp32, with these folds, or with those that were chosen."""
        graph = ir.load(self.base)
        apply_changes(graph, self.changes if changes is None else changes)
        return graph

    def error_with(self, changes: Changes) -> float:
        """Return the error with these folds and every layer quantized, with ranges of the images of the comparison.

        Where methods are to be compared, ranges are the largest values: what folds bring, they bring to all methods.

        Raises:
            FoldError: the graph gives other outputs in fp32.
        """
        before, self.changes = self.changes, changes
        exact, self.exact = self.exact, []
        try:
            given = self.options.calibration
            assert given is not None
            files = given.images()
            few = tuple(files[number] for number in spread_numbers(len(files), COMPARED))
            calibration = dataclasses.replace(given, source=few)
            rows = self.graph()
            found = _measured(rows, self, calibration, SILENT, cache=False)
            _forget(rows)
            if exact:
                check_same("a fold", exact, self.exact)
                self.exact = exact
            method = "minmax" if given.method == "auto" else given.method
            return fmean(self.errors(found.ranges(method, given.percentile)))
        finally:
            self.changes = before

    def corrections(
        self, ranges: Mapping[str, float], kept: Collection[str], before: float
    ) -> tuple[Changes, CorrectionReport | None]:
        """Return what corrects the quantized layers, all but ``kept``; ``before`` is the error without."""
        if self.options.calibration is None or not self.options.tries("correct"):
            return {}, None
        images = unseen_images(self.options.calibration, self.spec, COMPARED, self.few)

        def quantized(graph: ir.Model) -> QuantizationResult:
            return quantize_as(graph, ranges, self.spec, self.options, kept, self.largest)

        def error_with(changes: Changes) -> float:
            self.changes = joined_changes(self.changes, changes)
            return fmean(self.errors(ranges, kept))

        return choose_corrections(self.graph(), quantized, images, error_with, before)

    def _folded(self) -> str:
        return digest_of_changes(self.changes).hex()

    def parts(
        self, ranges: Mapping[str, float], kept: Collection[str], progress: Progress
    ) -> tuple[float, dict[str, float]]:
        """Return the error with all layers but ``kept`` quantized, and what each of them adds to it.

        These are means over the first images, or over the last ones if layers are kept.
        """
        asked = ["parts", self._folded(), digest_of(ranges), sorted(kept)]
        error, parts = self.journal.recall(asked, lambda: self._parts(ranges, kept, progress))
        return error, parts

    def _parts(
        self, ranges: Mapping[str, float], kept: Collection[str], progress: Progress
    ) -> tuple[float, dict[str, float]]:
        graph = self.graph()
        names = {str(node.name) for node in quantisable(graph.graph)}.difference(kept)
        weights = {str(n.name): weight_of(n) for n in quantisable(self.model.graph) if str(n.name) in names}
        quantize_as(graph, ranges, self.spec, self.options, kept, self.largest)
        count = min(self.few, CORRECTED if kept else RANKED)
        numbers = range(len(self.images))[-count:] if kept else range(count)
        adapter = export_adapter_of(self.spec)

        def error(number: int, found: Mapping[str, Tensor]) -> Tensor:
            return adapter.error(self.exact[numbers[number]], found)

        def tell(done: int) -> None:
            progress.share(f"layers ranked, {done} of {count} images", (done / count + bool(kept)) / 4)

        found = contributions_of(graph, weights, [self.images[n] for n in numbers], error, tell)
        _forget(graph)
        return found

    def errors(self, ranges: Mapping[str, float], kept: Collection[str] = (), of: slice = EVERY) -> list[float]:
        """Return the error on each of these images with all layers but ``kept`` quantized."""
        asked = ["errors", self._folded(), digest_of(ranges), sorted(kept), of.start, of.stop]
        return self.journal.recall(asked, lambda: self._errors(ranges, kept, of))

    def _errors(self, ranges: Mapping[str, float], kept: Collection[str], of: slice) -> list[float]:
        graph = self.graph()
        quantize_as(graph, ranges, self.spec, self.options, kept, self.largest)
        found = errors_of(graph, self.exact[of], self.images[of], self.spec)
        _forget(graph)
        return found


def digest_of(ranges: Mapping[str, float]) -> str:
    """Return a hash of ranges."""
    return hashlib.sha256(json.dumps(sorted(ranges.items())).encode()).hexdigest()


def _forget(graph: ir.Model) -> None:
    """Free the weights of a graph: its reference cycles keep it for a while, and several large ones would add up."""
    drop_weights(graph)
    release_freed_memory()


def _measured(
    rows: ir.Model, trials: _Trials, calibration: Calibration, progress: Progress, *, cache: bool
) -> Activations:
    """Measure what ranges follow from, and take the exact outputs of the comparison from the same runs."""
    options = trials.options
    if options.target == "cpu":
        tensors = rounded_tensors(rows.graph)
    else:
        layers = quantisable(rows.graph)
        both = options.keep_as == "fp16"  # which has to hold what layers give, too
        names = [name for node in layers for name in activations_of(node, outputs=both)]
        tensors = list(dict.fromkeys((*names, *measured_of(attention_cores(rows.graph)))))
    compared = () if trials.exact else spread_numbers(len(calibration.images()), COMPARED)

    def watch(number: int, outputs: dict[str, Array]) -> None:
        if number in compared:
            trials.exact.append({name: torch.from_numpy(value) for name, value in outputs.items()})

    data = digest_of_file(trials.base) + digest_of_changes(trials.changes) if cache else b""
    found = measure_activations(
        rows, data, trials.spec, tensors, calibration, cache=cache, watch=watch, progress=progress
    )
    trials.largest = found.largest
    trials.exact = trials.exact or outputs_of(rows, trials.images)
    return found


def _kept_by_measurement(
    trials: _Trials,
    layers: Sequence[ir.Node],
    ranges: Mapping[str, float],
    whole: Sequence[float],
    progress: Progress,
) -> tuple[tuple[str, ...], float, Sensitivity]:
    """Return the layers that are not quantized, the error with them, and what was measured.

    ``whole``: the error on each image with every layer quantized.
    """
    few = trials.few
    ranked = measure_sensitivity([str(node.name) for node in layers], lambda kept: trials.parts(ranges, kept, progress))
    named, tried = choose_keep(
        fmean(whole[:few]),
        ranked,
        lambda kept: fmean(trials.errors(ranges, kept, slice(few))),
        progress=progress,
    )
    error = fmean(whole)
    if named:
        others = trials.errors(ranges, named, slice(few, None)) if few < len(trials.images) else []
        error = (tried[len(named)] * few + sum(others)) / len(trials.images)
    return named, error, Sensitivity(fmean(whole[:few]), ranked, few, tried)
