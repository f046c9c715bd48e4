"""Quantization of a verified fp32 graph: calibration, the choice of layers to exclude, and the conversion."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from deploykit.errors import DataError, ExportError
from deploykit.export.options import Calibration, CalibrationMethod, Int8Target, PrecisionOptions, QuantKind
from deploykit.export.precision.calibration import AUTO, Activations, calibration_images, measure_activations
from deploykit.export.precision.cpu_int8 import rounded_tensors
from deploykit.export.precision.qdq import QuantizationResult, activations_of, quantisable
from deploykit.export.precision.sensitivity import (
    Sensitivity,
    choose_keep,
    error_with,
    label_of,
    measure_sensitivity,
    named_layers,
    outputs_of,
    quantize_as,
)
from deploykit.progress import SILENT, Progress
from deploykit.spec import ModelSpec

__all__ = ["QuantReport", "quantize_graph"]

COMPARED = 8  # images on which calibration methods are compared
WAITING = 256 * 2**20  # bytes of graphs that may wait to be freed
HOW_KEPT = {
    "measurement": "chosen by measurement",
    "name": "chosen by name",
    "nobody": "none was looked for (--int8-keep none)",
}
"""How the layers that stay in floating point were chosen -> what the report says of it."""
FOR_CPU = "to uint8 with zero points, for ONNX Runtime's integer kernels: TensorRT refuses this file"
MEASURED = 4 * 640 * 640  # pixels of the images on which layers are measured, by up to a hundred networks


@dataclass(frozen=True)
class QuantReport:
    """The result of a quantization.

    ``errors`` is the error of the outputs by calibration method, for the methods that were compared. ``error`` is the
    error without the excluded layers (see :meth:`deploykit.export.outputs.ExportAdapter.error`); None: not measured.
    ``images`` is how many images were used, ``names_sha256`` a hash of their names. ``labels`` maps a layer to its name
    in the network.
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

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return dataclasses.asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines for the screen: a label and a sentence each."""
        methods = ", ".join(f"{name} {error:.3g}" for name, error in self.errors.items())
        compared = f"; error of the outputs by method: {methods}" if len(self.errors) > 1 else ""
        cached = ", measured earlier" if self.cached else ""
        kept = f": {', '.join(self.labels[name] for name in self.done.kept)}" if self.done.kept else ""
        error = "" if self.error is None else f"; error of the outputs {self.error:.3g}"
        if self.error is not None and self.done.kept:
            error += f" instead of {self.errors[self.method]:.3g}"
        return [
            *([("rounded", f"{len(self.done.tensors)} tensors, {FOR_CPU}")] if self.target == "cpu" else []),
            ("ranges", f"{self.method}, {self.images} images{cached}{compared}"),
            (
                "not quantized",
                f"{len(self.done.kept)} of {len(self.done.kept) + len(self.done.layers)} layers, "
                f"{HOW_KEPT[self.kept_by]}{error}{kept}",
            ),
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
    rows = ir.load(base)
    layers = quantisable(rows.graph)
    if not layers:
        raise ExportError(f"the graph has no convolution or matrix product with constant weights to quantize to {kind}")
    named = () if isinstance(exclude, str) else named_layers(rows, exclude)
    progress.step("ranges")
    tensors, cache = _measured(rows, options), options.cache
    found = measure_activations(rows, base.read_bytes(), spec, tensors, calibration, cache=cache, progress=progress)
    images = calibration_images(calibration, spec, COMPARED)
    exact = outputs_of(rows, images)

    size, waiting = base.stat().st_size, 0

    def error_of(ranges: dict[str, float], kept: Collection[str], count: int) -> float:
        nonlocal waiting
        error = error_with(ir.load(base), ranges, kept, exact[:count], images[:count], spec, options)
        waiting += size
        if waiting > WAITING:  # graphs hold reference cycles, and dozens of large ones would stay in memory
            gc.collect()  # slow, so not after every small graph
            waiting = 0
        return error

    few = min(len(images), max(2, round(MEASURED / (spec.input.size[0] * spec.input.size[1]))))
    method, errors, ranges = _choose_method(found, calibration, lambda r: error_of(r, (), COMPARED), progress)
    sensitivity = None
    error: float | None = errors.get(method)
    if exclude == "auto":
        progress.step("layers")
        sensitivity = measure_sensitivity(
            [str(node.name) for node in layers],
            lambda kept: error_of(ranges, kept, few),
            few,
            progress=progress,
        )
        named = choose_keep(sensitivity, lambda kept: error_of(ranges, kept, few), progress=progress)
    if named:
        error = error_of(ranges, named, COMPARED)
    done = quantize_as(model, ranges, spec, options, named)
    return QuantReport(
        kind=kind,
        method=method,
        errors=errors,
        images=found.images,
        names_sha256=hashlib.sha256("\n".join(p.name for p in calibration.images()).encode()).hexdigest(),
        cached=found.cached,
        done=done,
        labels={str(node.name): label_of(node) for node in layers},
        kept_by={"auto": "measurement", "none": "nobody"}.get(str(exclude), "name"),
        sensitivity=sensitivity,
        error=error,
        ranges=ranges,
        reduce_range=options.reduce_range,
        target=options.target,
    )


def _measured(rows: ir.Model, options: PrecisionOptions) -> list[str]:
    """Return the names of the tensors whose ranges are needed."""
    if options.target == "cpu":
        return rounded_tensors(rows.graph)
    layers = quantisable(rows.graph)
    return list(dict.fromkeys(name for node in layers for name in activations_of(node, outputs=False)))


def _choose_method(
    found: Activations,
    calibration: Calibration,
    error_of: Callable[[dict[str, float]], float],
    progress: Progress,
) -> tuple[CalibrationMethod, dict[str, float], dict[str, float]]:
    """Return the best calibration method, the errors of the methods that were compared, and the best one's ranges."""
    methods = AUTO if calibration.method == "auto" else (calibration.method,)
    ranges = {method: found.ranges(method, calibration.percentile) for method in methods}
    errors = {}
    for method in methods:
        progress.step(f"comparing {method}")
        errors[str(method)] = error_of(ranges[method])
    best: CalibrationMethod = min(methods, key=lambda method: errors[str(method)])
    if not math.isfinite(errors[str(best)]):
        raise DataError(
            f"expected finite outputs of the quantized network, but with the ranges of {', '.join(methods)} it gives "
            "NaN or infinity on the calibration images: check the checkpoint, or keep its layers in fp32 "
            "(--int8-keep)"
        )
    return best, errors, ranges[best]
