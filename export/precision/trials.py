"""Quantized networks that are run on the images of a comparison, and the ranges that they get."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import onnx_ir as ir
from torch import Tensor

from deploykit.export.graph.passes import drop_weights
from deploykit.export.options import Calibration, PrecisionOptions
from deploykit.export.outputs import export_adapter_of
from deploykit.export.precision.attention import attention_cores, measured_of
from deploykit.export.precision.calibration import (
    Activations,
    Begun,
    measure_activations,
    on_grid,
    spread_numbers,
    unseen_images,
)
from deploykit.export.precision.cpu_int8 import rounded_tensors
from deploykit.export.precision.folds import Changes, apply_changes, digest_of_changes, joined_changes, with_scaled
from deploykit.export.precision.folds.choose import check_same
from deploykit.export.precision.folds.correct import CorrectionReport, choose_corrections
from deploykit.export.precision.qdq import QuantizationResult, activations_of, quantisable, weight_of
from deploykit.export.precision.search.contributions import contributions_of
from deploykit.export.precision.search.journal import Journal, digest_of_file
from deploykit.export.precision.sensitivity import ErrorsOf, as_tensors, outputs_of, quantize_as
from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.spec import ModelSpec

__all__ = ["COMPARED", "Trials"]

EVERY = slice(None)
PIXELS = 640 * 640  # of larger images, fewer have as many pixels as so many of this size:
COMPARED = 4  # images on which networks are compared, at least two
RANKED = 3  # images of the run that ranks layers
CORRECTED = 2  # images of the run that corrects the order of those that are not first


class Trials:
    """Quantized networks that are run on the images of a comparison.

    ``model`` is the graph that becomes the file, with the folds that were chosen: its weights are in memory anyway, so
    what weights were before is looked up there. ``files`` are the images, ``exact`` the outputs before of those whose
    number is asked for or was run; ``largest`` is what was measured of tensors. ``changes`` are the folds that every
    network has. ``journal`` has what an earlier search has measured, also one that was killed. ``few`` is how many of
    the first images are enough to choose: of all of them only what is reported is measured.
    """

    def __init__(
        self, model: ir.Model, base: Path, spec: ModelSpec, options: PrecisionOptions, images: Sequence[Array]
    ) -> None:
        self.model, self.base, self.spec, self.options, self.images = model, base, spec, options, images
        self.exact: dict[int, dict[str, Tensor]] = {}
        self.largest: Mapping[str, float] = {}
        about = {"spec": spec.to_json(), "options": repr(replace(options, nodes_to_exclude="auto", keep_file=None))}
        self.journal = Journal.of(digest_of_file(base), images, about) if options.cache else Journal(None)
        self.changes: Changes = {}
        self.begun: dict[bytes, Begun] = {}  # hash of changes -> what was measured on the images of the comparison
        self.scaled: dict[bytes, Mapping[str, tuple[str, Array]]] = {}  # hash of changes -> what is known of tensors
        self._same: set[str] = set()  # hashes of changes with which the graph was verified
        self._several = False
        self._network: ErrorsOf | None = None
        self._ready: tuple[Changes, ir.Model] | None = None  # what the graphs are copies of
        self._pixels = spec.input.size[0] * spec.input.size[1]
        self.few = min(len(images), max(2, round(COMPARED * PIXELS / self._pixels)))
        every = options.calibration.images() if options.calibration is not None else ()
        self.files = [every[number] for number in spread_numbers(len(every), COMPARED)]

    def graph(self) -> ir.Model:
        """Return the graph with raw rows, in fp32, with the folds of now.

        It shares its weights with the graphs before and, where they are the same, with ``model``.
        """
        known = None if self._ready is None else self._ready[0]
        if known is None or (known is not self.changes and (known or self.changes)):
            self._ready = None  # before there is another one
            graph = ir.load(self.base)
            apply_changes(graph, self.changes)
            _share_weights(graph, self.model)
            release_freed_memory()  # what the file was read into
            self._ready = self.changes, graph
        assert self._ready is not None
        return self._ready[1].clone()

    def settle(self) -> None:
        """Give ``model`` the folds of now."""
        apply_changes(self.model, self.changes)
        self._ready = None  # it has the weights of before

    def peaks(self, changes: Changes, tensors: Collection[str]) -> Mapping[str, Array]:
        """Return the largest values of the channels of those of these tensors that are measured, ``(channels,)``.

        They are of the few images, with these folds; ranges of all other tensors are measured in the same runs.
        """
        self._measure_few(changes, tensors)
        return self.begun[digest_of_changes(changes)].peaks

    def error_with(self, changes: Changes, scaled: Mapping[str, tuple[str, Array]] | None = None) -> float:
        """Return the error with these folds and every layer quantized, with ranges of the few images.

        Where methods are to be compared, ranges are the largest values: what folds bring, they bring to all methods.
        With ``scaled`` (:class:`~deploykit.export.precision.folds.Candidate`) those follow from what was measured
        without folds, and the graph is verified when the fold is taken.

        Raises:
            FoldError: the graph gives other outputs in fp32.
        """
        given = self.options.calibration
        assert given is not None
        method = "minmax" if given.method == "auto" else given.method
        if scaled is not None:
            self.scaled[digest_of_changes(changes)] = scaled
        ranges = self._scaled(changes, scaled) if scaled is not None and method == "minmax" else None
        if ranges is None:
            ranges = self._measure_few(changes).ranges(method, given.percentile)
        with self._with(changes):
            return fmean(self.errors(ranges, (), slice(self.few)))

    def _scaled(self, changes: Changes, scaled: Mapping[str, tuple[str, Array]]) -> dict[str, float] | None:
        """Return the largest values with these folds, from those without; None: some are not known."""
        known, peaks = dict(self._measure_few({}).largest), self.begun[digest_of_changes({})].peaks
        known |= {to: on_grid(float((peaks[name] * by).max())) for to, (name, by) in scaled.items() if name in peaks}
        with self._with(changes):
            names = self.tensors(self.graph())
        return {name: known[name] for name in names} if known.keys() >= set(names) else None

    def _measure_few(self, changes: Changes, channels: Collection[str] = ()) -> Activations:
        """Measure ranges with these folds on the few images, unless that was done before."""
        given = self.options.calibration
        assert given is not None
        begun = self.begun.setdefault(digest_of_changes(changes), Begun())
        few = dataclasses.replace(given, source=tuple(self.files[: self.few]))
        with self._with(changes):
            return self.measured(few, begun=begun, channels=channels, cache=False)

    def measured(
        self,
        calibration: Calibration,
        progress: Progress = SILENT,
        *,
        cache: bool,
        begun: Begun | None = None,
        channels: Collection[str] = (),
        further: Callable[[ir.Model], Mapping[str, str]] = lambda graph: {},
    ) -> Activations:
        """Measure what ranges follow from, and take the exact outputs of the comparison from the same runs.

        ``begun`` and ``channels`` as of :func:`measure_activations`; channels of what is not measured are left out.
        ``further`` adds nodes to the graph, and returns tensors that are measured too, as values.

        Raises:
            FoldError: with the folds of now the outputs are others.
        """
        rows = self.graph()
        tensors = list(dict.fromkeys((*self.tensors(rows), *further(rows).values())))
        given = calibration.images()
        outputs: dict[int, dict[str, Tensor]] = {}

        def watch(number: int, found: dict[str, Array]) -> None:
            if given[number] in self.files:
                outputs[self.files.index(given[number])] = as_tensors(found)

        data = digest_of_file(self.base) + digest_of_changes(self.changes) if cache else b""
        peaks = [name for name in tensors if name in channels]
        found = measure_activations(
            rows, data, self.spec, tensors, calibration,
            cache=cache, watch=watch, progress=progress, begun=begun, channels=peaks,
        )  # fmt: skip
        if self.changes:
            self.check_same(outputs)
        else:
            self._keep(outputs)
        forget(rows)
        return found

    def calibrated(self, changes: Changes, progress: Progress) -> dict[bytes, Activations]:
        """Measure on all images with these folds, and without, by the hash of the changes.

        One run of each image is enough for both where it is known what the folds scale; only on the few images a graph
        with the folds is run, too, which verifies it. With other folds the activations without them are left out.

        Raises:
            FoldError: with the folds the outputs are others.
        """
        given, cache, plain = self.options.calibration, self.options.cache, digest_of_changes({})
        assert given is not None
        digest = digest_of_changes(changes)
        if not changes or digest not in self.scaled:
            with self._with(changes):
                return {digest: self.measured(given, progress, cache=cache, begun=self.begun.pop(digest, None))}
        self._measure_few(changes)
        with self._with(changes):
            names = self.tensors(self.graph())

        def further(graph: ir.Model) -> dict[str, str]:
            return with_scaled(graph, self.scaled[digest], names)

        with self._with({}):
            here, own = further(self.graph()), self.tensors(self.graph())
            begun = self.begun.pop(plain).joined(self.begun.pop(digest), here)
            found = self.measured(given, progress, cache=cache, begun=begun, further=further)
        return {digest: found.of(here), plain: found.of({name: name for name in own})}

    @contextlib.contextmanager
    def _with(self, changes: Changes) -> Iterator[None]:
        before, self.changes = self.changes, changes
        try:
            yield
        finally:
            self.changes = before

    def tensors(self, graph: ir.Model) -> list[str]:
        """Return the tensors of an fp32 graph that are measured."""
        if self.options.target == "cpu":
            return rounded_tensors(graph.graph)
        both = self.options.keep_as == "fp16"  # which has to hold what layers give, too
        names = [name for node in quantisable(graph.graph) for name in activations_of(node, outputs=both)]
        return list(dict.fromkeys((*names, *measured_of(attention_cores(graph.graph)))))

    def corrections(
        self, ranges: Mapping[str, float], kept: Collection[str], before: float
    ) -> tuple[Changes, CorrectionReport | None, float]:
        """Return what corrects the quantized layers, all but ``kept``, the report, and the error then on all images.

        ``before`` is the error without, on the few images.
        """
        if self.options.calibration is None or not self.options.tries("correct"):
            return {}, None, self.error_on_all(ranges, kept, before)
        folds = self.changes
        images = unseen_images(self.options.calibration, self.spec, COMPARED, self.few)

        def quantized(graph: ir.Model) -> QuantizationResult:
            return quantize_as(graph, ranges, self.spec, self.options, kept, self.largest)

        def error_with(changes: Changes) -> float:
            self.changes = joined_changes(folds, changes)
            return fmean(self.errors(ranges, kept, slice(self.few)))

        with self.in_one_network():
            changes, report = choose_corrections(self.graph(), quantized, images, error_with, before)
            if changes and report is not None:
                return changes, report, self.error_on_all(ranges, kept, report.after)
        self.changes = folds
        return {}, report, self.error_on_all(ranges, kept, before)

    def error_on_all(self, ranges: Mapping[str, float], kept: Collection[str], few: float) -> float:
        """Return the error on all images; ``few`` is that on the few ones."""
        others = self.errors(ranges, kept, slice(self.few, None))
        return (few * self.few + sum(others)) / len(self.images) if others else few

    def exact_of(self, numbers: Collection[int]) -> list[dict[str, Tensor]]:
        """Return the exact outputs for the images of these numbers."""
        missing = [number for number in numbers if number not in self.exact]
        if missing:
            with self._with({}):
                graph = self.graph()
            found = outputs_of(graph, [self.images[number] for number in missing])
            self._keep(dict(zip(missing, found, strict=True)))
            forget(graph)
        return [self.exact[number] for number in numbers]

    def _keep(self, exact: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Keep exact outputs, copied: those of ONNX Runtime keep all of the memory of the session that made them."""
        self.exact |= {n: {name: value.clone() for name, value in found.items()} for n, found in exact.items()}

    def check_same(self, found: Mapping[int, dict[str, Tensor]]) -> None:
        """Check that the graph with the folds of now gives the exact outputs.

        ``found`` are its outputs by the number of the image; without any, the few images are run, once.

        Raises:
            FoldError: it does not.
        """
        if not found:
            if self._folded() in self._same:
                return
            graph = self.graph()
            found = dict(enumerate(outputs_of(graph, self.images[: self.few])))
            forget(graph)
        check_same("a fold", self.exact_of(list(found)), list(found.values()))
        self._same.add(self._folded())

    def _folded(self) -> str:
        return digest_of_changes(self.changes).hex()

    def parts(
        self, ranges: Mapping[str, float], kept: Collection[str], whole: Sequence[float], progress: Progress
    ) -> tuple[float, dict[str, float]]:
        """Return the error with all layers but ``kept`` quantized, and what each of them adds to it.

        These are means over the first of the few images, or over the last ones if layers are kept. ``whole`` is the
        error on each with all layers quantized: where one image is enough, it is that of the largest or the second
        largest, because one on which nothing is found tells nothing.
        """
        most = CORRECTED if kept else RANKED
        count = min(self.few, most, max(1, round(most * PIXELS / self._pixels)))
        order = list(range(self.few))
        if count == 1:
            order = sorted(order, key=lambda number: -whole[number])[:2]
        numbers = order[-count:] if kept else order[:count]
        asked = ["parts", self._folded(), digest_of(ranges), sorted(kept), numbers]
        error, parts = self.journal.recall(asked, lambda: self._parts(ranges, kept, numbers, progress))
        return error, parts

    def _parts(
        self, ranges: Mapping[str, float], kept: Collection[str], numbers: Sequence[int], progress: Progress
    ) -> tuple[float, dict[str, float]]:
        graph = self.graph()
        names = {str(node.name) for node in quantisable(graph.graph)}.difference(kept)
        weights = {str(n.name): weight_of(n) for n in quantisable(self.model.graph) if str(n.name) in names}
        quantize_as(graph, ranges, self.spec, self.options, kept, self.largest)
        adapter, exact, count = export_adapter_of(self.spec), self.exact_of(numbers), len(numbers)

        def error(number: int, found: Mapping[str, Tensor]) -> Tensor:
            return adapter.error(exact[number], found)

        def tell(done: int) -> None:
            progress.share(f"layers ranked, {done} of {count} images", (done / count + bool(kept)) / 4)

        found = contributions_of(graph, weights, [self.images[n] for n in numbers], error, tell)
        forget(graph)
        return found

    def errors(self, ranges: Mapping[str, float], kept: Collection[str] = (), of: slice = EVERY) -> list[float]:
        """Return the error on each of these images with all layers but ``kept`` quantized."""
        if not self.images[of]:
            return []
        asked = ["errors", self._folded(), digest_of(ranges), sorted(kept), of.start, of.stop]
        return self.journal.recall(asked, lambda: self._errors(ranges, kept, of))

    def _errors(self, ranges: Mapping[str, float], kept: Collection[str], of: slice) -> list[float]:
        exact = self.exact_of(range(len(self.images))[of])
        graph = self.graph()
        quantize_as(graph, ranges, self.spec, self.options, kept, self.largest)
        network = self._network or ErrorsOf(graph, self.spec)
        found = network.errors(graph, exact, self.images[of])
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
