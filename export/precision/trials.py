"""Quantized networks that are run on the images of a comparison, and the ranges that they get."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from torch import Tensor

from deploykit.export.graph.passes import drop_weights
from deploykit.export.options import Calibration, CalibrationMethod, PrecisionOptions
from deploykit.export.outputs import export_adapter_of
from deploykit.export.precision.attention import attention_cores, measured_of
from deploykit.export.precision.calibration import (
    Activations,
    Begun,
    choose_method,
    measure_activations,
    spread_numbers,
    unseen_images,
)
from deploykit.export.precision.cpu_int8 import rounded_tensors
from deploykit.export.precision.folds import Changes, apply_changes, digest_of_changes, joined_changes
from deploykit.export.precision.folds.choose import FoldReport, check_same
from deploykit.export.precision.folds.correct import CorrectionReport, choose_corrections
from deploykit.export.precision.qdq import QuantizationResult, activations_of, quantisable, weight_of
from deploykit.export.precision.search.contributions import contributions_of
from deploykit.export.precision.search.journal import Journal, digest_of_file
from deploykit.export.precision.sensitivity import ErrorsOf, as_tensors, outputs_of, quantize_as
from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.spec import ModelSpec

__all__ = ["COMPARED", "Calibrated", "Trials", "calibrate"]

EVERY = slice(None)
RANKED = 3  # images of the run that ranks layers
CORRECTED = 2  # images of the run that corrects the order of those that are not first
COMPARED = 4  # images on which calibration methods are compared
MEASURED = 4 * 640 * 640  # pixels of the images on which layers are measured


class Trials:
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
        self.begun: dict[bytes, Begun] = {}  # hash of changes -> what was measured on the images of the comparison
        self._several = False
        self._network: ErrorsOf | None = None
        self._ready: tuple[Changes, ir.Model] | None = None  # what the graphs are copies of
        self.few = min(len(images), max(2, round(MEASURED / (spec.input.size[0] * spec.input.size[1]))))

    def graph(self) -> ir.Model:
        """Return the graph with raw rows, in fp32, with the folds of now.

        It shares its weights with the graphs before and, where they are the same, with ``model``.
        """
        if self._ready is None or self._ready[0] is not self.changes:
            self._ready = None  # before there is another one
            graph = ir.load(self.base)
            apply_changes(graph, self.changes)
            _share_weights(graph, self.model)
            self._ready = self.changes, graph
        return self._ready[1].clone()

    def settle(self) -> None:
        """Give ``model`` the folds of now."""
        apply_changes(self.model, self.changes)
        self._ready = None  # it has the weights of before

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
            begun = self.begun[digest_of_changes(changes)] = Begun()
            found = _measured(rows, self, calibration, SILENT, cache=False, begun=begun)
            forget(rows)
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
        forget(graph)
        return found

    def errors(self, ranges: Mapping[str, float], kept: Collection[str] = (), of: slice = EVERY) -> list[float]:
        """Return the error on each of these images with all layers but ``kept`` quantized."""
        asked = ["errors", self._folded(), digest_of(ranges), sorted(kept), of.start, of.stop]
        return self.journal.recall(asked, lambda: self._errors(ranges, kept, of))

    def _errors(self, ranges: Mapping[str, float], kept: Collection[str], of: slice) -> list[float]:
        graph = self.graph()
        quantize_as(graph, ranges, self.spec, self.options, kept, self.largest)
        network = self._network or ErrorsOf(graph, self.spec)
        found = network.errors(graph, self.exact[of], self.images[of])
        if self._several:
            self._network = network
        else:
            network.close()
        forget(graph)
        return found

    @contextlib.contextmanager
    def in_one_network(self) -> Iterator[None]:
        """Let the networks of the context be one, which takes less time: they differ in their ranges alone."""
        self._several = True
        try:
            yield
        finally:
            self._several = False
            if self._network is not None:
                self._network.close()
                self._network = None


def _share_weights(graph: ir.Model, other: ir.Model) -> None:
    """Let a graph have the weights of another one, where they are the same."""
    for name, value in graph.graph.initializers.items():
        there = other.graph.initializers.get(name)
        own, found = value.const_value, None if there is None else there.const_value
        if own is None or found is None or found.dtype != own.dtype:
            continue
        if np.array_equal(own.numpy(), found.numpy()):
            value.const_value = found


def digest_of(ranges: Mapping[str, float]) -> str:
    """Return a hash of ranges."""
    return hashlib.sha256(json.dumps(sorted(ranges.items())).encode()).hexdigest()


def forget(graph: ir.Model) -> None:
    """Free the weights of a graph: its reference cycles keep it for a while, and several large ones would add up."""
    drop_weights(graph)
    release_freed_memory()


def _measured(
    rows: ir.Model,
    trials: Trials,
    calibration: Calibration,
    progress: Progress,
    *,
    cache: bool,
    begun: Begun | None = None,
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
            trials.exact.append(as_tensors(outputs))

    data = digest_of_file(trials.base) + digest_of_changes(trials.changes) if cache else b""
    found = measure_activations(
        rows, data, trials.spec, tensors, calibration, cache=cache, watch=watch, progress=progress, begun=begun
    )
    trials.largest = found.largest
    trials.exact = trials.exact or outputs_of(rows, trials.images)
    return found


class Calibrated(NamedTuple):
    """What was measured on all images, the method, the errors of the methods by image, and its ranges."""

    activations: Activations
    method: CalibrationMethod
    by_image: Mapping[str, Sequence[float]]
    ranges: dict[str, float]

    @property
    def error(self) -> float:
        """The mean error with every layer quantized."""
        return fmean(self.by_image[self.method])


def calibrate(
    trials: Trials, changes: Changes, folds: FoldReport | None, progress: Progress
) -> tuple[Calibrated, FoldReport | None]:
    """Calibrate, and drop folds with which the error is not lower once all images give the ranges.

    ``trials`` then has the changes that stay.
    """
    given, cache = trials.options.calibration, trials.options.cache
    assert given is not None

    def errors_with(ranges: Mapping[str, float], of: slice) -> list[float]:
        return trials.errors(ranges, (), of)

    def calibrated(changes: Changes, best: Sequence[float] = ()) -> Calibrated:
        trials.changes = changes
        rows = trials.graph()
        begun = trials.begun.pop(digest_of_changes(changes), None)
        found = _measured(rows, trials, given, progress, cache=cache, begun=begun)
        forget(rows)
        with trials.in_one_network():
            return Calibrated(found, *choose_method(found, given, errors_with, progress, best))

    progress.step("ranges")
    found = calibrated(changes)
    if folds is None or not folds.taken:
        return found, folds
    progress.step("ranges without folds")
    plain = calibrated({}, found.by_image[found.method])
    if len(plain.by_image[plain.method]) >= len(trials.images) and plain.error <= found.error:
        return plain, folds.without()
    trials.changes, trials.largest = changes, found.activations.largest
    return found, folds
