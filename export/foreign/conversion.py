"""The conversion itself: a prepared graph to a lower precision, measured on the network before its choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from torch import Tensor

from deploykit.errors import ExportError, ParityError, UsageError
from deploykit.export.foreign.choice import Choice, attach, detach
from deploykit.export.foreign.feeding import with_image_input
from deploykit.export.foreign.judging import compare_sessions, values_apart
from deploykit.export.graph.finalize import write
from deploykit.export.graph.passes import initializers_of
from deploykit.export.options import PrecisionOptions
from deploykit.export.parity.report import ParityReport
from deploykit.export.precision.convert import (
    PrecisionReport,
    as_chosen,
    half_report,
    named_nodes,
    quantized,
    with_further,
)
from deploykit.export.precision.convert_half import HalfJob, convert_half, ranking_of
from deploykit.export.precision.search.kept import with_keep_file
from deploykit.export.sessions.fed import ImageInput
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.backends import ort
from deploykit.runtime.parity.expected import ParityInputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session
from deploykit.spec import METADATA_KEY, DenseOutput, ModelSpec

__all__ = ["Conversion", "Converted", "FurtherLayers", "Network", "network_file", "network_of"]


@dataclass(frozen=True)
class Network:
    """A network without its choice, fed by images, in a file of fp32.

    ``spec`` is that of its outputs: the file's own where nothing was cut off, else one of plain values. ``whole`` says
    which of the two.
    """

    file: Path
    spec: ModelSpec
    whole: bool


@dataclass(frozen=True, eq=False)
class Converted:
    """A converted graph, the file of its network without the choice, and the reports."""

    graph: ir.Model
    network: Path
    choice: Choice
    report: PrecisionReport


def network_file(graph: ir.Model, image: ImageInput, spec: ModelSpec, file: Path) -> tuple[Choice, Path]:
    """Write the network of a graph without its choice, fed by images; the graph is not changed.

    The file holds the spec, because measured ranges are kept under its hash and depend on how images are prepared.

    Raises:
        ExportError: no layer comes before the choice.
    """
    cut = graph.clone()
    choice = detach(cut)
    if choice.nodes and not choice.values:
        kinds = ", ".join(choice.kinds)
        raise ExportError(f"the graph begins with a choice ({kinds}): no layer before it can be converted")
    with_image_input(cut, image)
    cut.metadata_props[METADATA_KEY] = spec.to_json()
    _write(cut, file)
    return choice, file


def network_of(spec: ModelSpec, choice: Choice, file: Path, *, known: bool) -> Network:
    """Return what is known of a network in a file; ``known``: ``spec`` describes the outputs of its graph."""
    if known and not choice.nodes and not spec.output.nms_inside:
        return Network(file, spec, whole=True)
    first = str(choice.values[0].name)
    return Network(file, ModelSpec(task="features", input=spec.input, output=DenseOutput(name=first)), whole=False)


@dataclass(frozen=True)
class Conversion:
    """Conversions of a prepared graph of fp32, which is not changed.

    ``feeds`` are the images on which values are measured, and on which half precision is checked.
    """

    graph: ir.Model
    network: Network
    image: ImageInput
    feeds: ParityInputs
    progress: Progress = SILENT

    def converted(self, options: PrecisionOptions) -> Converted:
        """Convert.

        Raises:
            ParityError: it does not agree with the network before, computed by the types of its graph.
            ExportError: the conversion is not possible. Else as
                :func:`deploykit.export.precision.quantize.quantize_graph`.
        """
        new, network = self.graph.clone(), self.network
        choice = detach(new)
        options, chosen = with_keep_file(options, {str(node.name) for node in new.graph})
        if options.half is not None:
            if choice.nodes and options.half_io != "none":
                raise UsageError(f"--half-io {options.half_io}: what a network chooses is float32, and so is its input")
            with self._job(new, options) as job:
                done = convert_half(job)
            new, report = done.graph, half_report(options.half, done)
        else:
            fed = with_image_input(new, self.image)  # because folds run the graph too
            report = quantized(new, network.file, network.spec, options, self.progress)
            fed.undo(new)
        if chosen is not None:
            report = as_chosen(report, chosen, network.spec.source.sha256)
        file = _write(_fed(new, self.image), network.file.with_name("converted.onnx"))
        attach(new, choice)
        return Converted(new, file, choice, report)

    def ranking(self, options: PrecisionOptions, first: PrecisionReport) -> list[str]:
        """Return the layers that a first conversion did not keep, those that add most to the error first."""
        kept = {row.node for row in first.kept}
        if options.half is not None:
            graph = self.graph.clone()
            detach(graph)
            with self._job(graph, options) as job:
                return ranking_of(replace(job, asked=tuple(kept)))
        found = first.quantised.sensitivity if first.quantised is not None else None
        return [] if found is None else [layer for layer in found.layers if layer not in kept]

    @contextmanager
    def _job(self, graph: ir.Model, options: PrecisionOptions) -> Iterator[HalfJob]:
        """The conversion to fp16 or bf16 of a network without its choice."""
        network, image = self.network, self.image
        assert options.half is not None
        with ort.open_session(network.file, provider="cpu") as before:
            yield HalfJob(
                graph=graph,
                kind=options.half,
                inputs=self.feeds,
                spec=network.spec,
                rows=lambda converted: _fed(converted, image),
                half_io=options.half_io,
                measured=_fed(graph, image),
                verification=_Check(network, before, self.feeds, Within("checking: ", self.progress)),
                asked=named_nodes(graph, options),
                search=options.nodes_to_exclude == "auto",
                base=network.file if options.cache else None,
                progress=self.progress,
            )


@dataclass(frozen=True)
class FurtherLayers:
    """Conversions with further layers in higher precision: see :class:`deploykit.export.precision.convert.Further`."""

    conversion: Conversion
    options: PrecisionOptions
    first: PrecisionReport

    def ranking(self) -> list[str]:
        """See :meth:`deploykit.export.precision.convert.Further.ranking`."""
        return self.conversion.ranking(self.options, self.first)

    def convert(self, layers: Sequence[str]) -> tuple[ir.Model, PrecisionReport]:
        """See :meth:`deploykit.export.precision.convert.Further.convert`."""
        names = (*(row.node for row in self.first.kept), *layers)
        found = self.conversion.converted(replace(self.options, nodes_to_exclude=names))
        return found.graph, with_further(self.first, found.report)


@dataclass(frozen=True)
class _Check:
    """Compares a converted network, computed in torch by the types of its graph, with the one ``before``."""

    network: Network
    before: Session
    feeds: ParityInputs
    progress: Progress

    def check_in_torch(
        self, graph: ir.Model, name: str, limits: Tolerance, *, about: Callable[[str], str] = lambda tensor: ""
    ) -> ParityReport:
        """See :class:`deploykit.export.precision.convert_half.HalfCheck`.

        Raises:
            ParityError: a tensor overflows.
        """
        parity, broken = self._compared(graph, name, limits, self.feeds)
        if broken:
            told = f"; {known}" if (known := about(broken[0])) else ""
            raise ParityError(f"{name} was not kept: its tensor {broken[0]!r} has values that are not finite{told}")
        return parity

    def failing_in_torch(self, graph: ir.Model, name: str, limits: Tolerance, order: Sequence[str]) -> str:
        """See :class:`deploykit.export.precision.convert_half.HalfCheck`."""
        batches = {batch.name: batch for batch in self.feeds.batches}
        for batch in order:
            feeds = replace(self.feeds, batches=(batches[batch],))
            parity, broken = self._compared(graph, name, limits, feeds)
            if not parity.ok or broken:
                return batch
        return ""

    def _compared(
        self, graph: ir.Model, name: str, limits: Tolerance, feeds: ParityInputs
    ) -> tuple[ParityReport, list[str]]:
        broken: list[str] = []

        def observe(tensor: str, value: Tensor) -> None:
            if not value.float().isfinite().all():
                broken.append(tensor)

        names = "the fp32 network", f"{name} in torch"
        with OnnxInTorchSession(graph, observe=observe) as after:
            sessions = self.before, after
            if self.network.whole:
                return compare_sessions(names, sessions, self.network.spec, feeds, limits, self.progress), broken
            return values_apart(names, sessions, feeds, limits, self.progress), broken


def _fed(graph: ir.Model, image: ImageInput) -> ir.Model:
    """A copy of a network that is fed by images."""
    fed = graph.clone()
    with_image_input(fed, image)
    return fed


def _write(graph: ir.Model, file: Path) -> Path:
    return write(graph, file, sum(each.size for each in initializers_of(graph)))
