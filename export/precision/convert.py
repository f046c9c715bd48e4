"""Conversion of an export to another precision, and its verification.

The fp32 graph is verified before it is converted, so that errors of the export and of the precision never mix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import onnx_ir as ir
from onnx_ir.passes import common
from torch import nn

from deploykit.errors import UsageError
from deploykit.export.graph.finalize import finalize_graph, write
from deploykit.export.graph.passes import initializers_of
from deploykit.export.graph.split import with_known_roi_align, write_first_stage
from deploykit.export.nms.plan import NmsPlan
from deploykit.export.options import Precision, PrecisionOptions
from deploykit.export.parity.extremes import divides
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import LIMITS
from deploykit.export.parity.verification import Verification
from deploykit.export.precision.convert_half import HalfConversion, HalfJob, HalfSearch, convert_half, ranking_of
from deploykit.export.precision.half import HalfReport, HalfType
from deploykit.export.precision.quantize import QuantReport, quantize_graph
from deploykit.export.precision.read_back import check_precision, precisions_of
from deploykit.export.precision.search.costs import table_of
from deploykit.export.precision.search.kept import KeepFile, KeptLayer, with_keep_file
from deploykit.export.precision.search.names import label_of, named_in
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.parity.expected import ParityInputs
from deploykit.spec import ModelSpec

__all__ = [
    "ExportContext", "Further", "PrecisionReport", "TracedGraph", "as_chosen", "convert_precision", "half_report",
    "named_nodes", "quantized", "traced_graph", "verify_file", "verify_precision", "with_further",
]  # fmt: skip


@dataclass(frozen=True)
class PrecisionReport:
    """The result of a conversion.

    ``base`` is the parity report of the fp32 graph before the conversion; None: it was not checked. ``computes`` counts
    the convolutions and matrix products by the precision that they compute in, read back from the file. ``kept`` are
    the layers that names or a search keep in higher precision, ``search`` how that of fp16 or bf16 has found them.
    """

    precision: Precision
    base: ParityReport | None
    computes: dict[str, int]
    half: HalfReport | None = None
    quantised: QuantReport | None = None
    in_torch: ParityReport | None = None
    notes: tuple[str, ...] = ()
    kept: tuple[KeptLayer, ...] = ()
    search: HalfSearch | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {
            "precision": self.precision,
            "computes": self.computes,
            "base": self.base.to_dict() if self.base else None,
            "half": dataclasses.asdict(self.half) if self.half else None,
            "quantised": self.quantised.to_dict() if self.quantised else None,
            "in_torch": self.in_torch.to_dict() if self.in_torch else None,
            "notes": list(self.notes),
            "kept": [dataclasses.asdict(layer) for layer in self.kept],
            "search": dataclasses.asdict(self.search) if self.search else None,
        }


@dataclass(frozen=True, kw_only=True)
class ExportContext:
    """Everything about an export that is known before its graph is traced.

    Attributes:
        trace: traces a module to a graph; takes the names of its outputs.
        plan: the plan of NMS.
        rows_plan: the plan of the network with raw rows, also if NMS is exported after them.
        spec: the spec of the export, still without its precision.
        rows: the spec of the network with raw rows.
        fused: the fused model.
        inputs: the images on which the export is checked and values are measured; None: neither is done.
        verification: the checks against the reference values; None: the export is not checked.
        progress: receives the steps.
        again: keep what a further conversion needs.
    """

    trace: Callable[[nn.Module, Sequence[str]], ir.Model]
    plan: NmsPlan
    rows_plan: NmsPlan
    spec: ModelSpec
    rows: ModelSpec
    fused: nn.Module
    inputs: ParityInputs | None
    verification: Verification | None
    progress: Progress = SILENT
    again: bool = False


class Further(Protocol):
    """Conversions of the same graph with further layers in higher precision."""

    def ranking(self) -> list[str]:
        """Return the layers that do not stay yet, those that add most to the error first."""

    def convert(self, layers: Sequence[str]) -> tuple[ir.Model, PrecisionReport]:
        """Return the graph with these layers in higher precision too, and the report."""


class TracedGraph(NamedTuple):
    """A graph, still without NMS, and what was verified before it was made.

    ``rows`` is the report on rows that the graph does not give; ``base`` the fp32 file with raw rows; ``further``
    converts again, if the context asks for that and layers are chosen by measurement.
    """

    graph: ir.Model
    precision: PrecisionReport | None = None
    rows: ParityReport | None = None
    base: Path | None = None
    further: Further | None = None


def traced_graph(context: ExportContext, options: PrecisionOptions, folder: Path, name: str) -> TracedGraph:
    """Trace the graph of an export of that name, and convert it to its precision.

    Raises:
        ParityError: what is verified on the way does not agree. ExportError: the conversion is not possible.
    """
    if options.precision != "fp32":
        return convert_precision(context, options, folder)
    if context.plan.chosen:  # most rows are not in what it gives
        graph, rows, base = trace_with_rows(context, folder, f"{name}, all rows")
        return TracedGraph(with_outputs(graph, context.plan.outputs), rows=rows, base=base)
    return TracedGraph(_traced(context, context.plan.module(context.fused), context.plan.outputs))


def _traced(context: ExportContext, module: nn.Module, outputs: Sequence[str]) -> ir.Model:
    """Trace a module, and tell the verification what its graph is like."""
    graph = context.trace(module, outputs)
    if context.verification is not None:
        context.verification.divides = divides(graph.graph)
    return graph


def convert_precision(context: ExportContext, options: PrecisionOptions, folder: Path) -> TracedGraph:
    """Trace the network once, verify it in fp32, and convert it.

    ``base`` of the result is the verified fp32 file with raw rows, in ``folder``.

    Raises:
        ParityError: the fp32 graph does not agree with the model. ExportError: the conversion is not possible.
    """
    if options.half_io in ("output", "both") and context.spec.output.nms_inside:
        raise UsageError(f"--half-io {options.half_io} needs raw rows: detections that a network chooses are float32")
    graph, verified, base = trace_with_rows(context, folder)
    options, chosen = with_keep_file(options, {str(node.name) for node in graph.graph})
    exact = graph.clone() if context.again and options.nodes_to_exclude == "auto" else None
    graph, report = _converted(context, options, graph, base)
    report = replace(report, base=verified)
    if chosen is not None:
        report = as_chosen(report, chosen, context.spec.source.sha256)
    further = None if exact is None else _Further(context, options, exact, report, base)
    context.progress.step("writing")
    return TracedGraph(graph, report, base=base, further=further)


def _converted(
    context: ExportContext, options: PrecisionOptions, graph: ir.Model, base: Path
) -> tuple[ir.Model, PrecisionReport]:
    """Convert a graph, which may be changed by that, and drop the outputs that are not exported."""
    if options.half is not None:
        graph, report = _convert_to_half(context, options, options.half, graph, base)
    else:
        # Of a detector in two stages the first is quantized and measured, by all that the second takes from it:
        # detections are decisions, and have no derivative.
        measured = write_first_stage(base) if context.rows.output.two_stages else base
        report = quantized(graph, measured, context.rows, options, context.progress)
    graph = with_outputs(graph, context.plan.outputs)
    if report.half is not None:  # the converted graph also gave the rows, with Casts of their own
        casts = sum(node.op_type == "Cast" for node in graph.graph)
        report = replace(report, half=replace(report.half, casts=casts))
    return graph, report


@dataclass(frozen=True)
class _Further:
    """Conversions of the same graph with further layers in higher precision: see :class:`Further`."""

    context: ExportContext
    options: PrecisionOptions
    exact: ir.Model
    report: PrecisionReport
    base: Path

    def ranking(self) -> list[str]:
        """See :meth:`Further.ranking`."""
        kept = {row.node for row in self.report.kept}
        if self.report.quantised is None:
            job = replace(_job_of(self.context, self.options, self.exact, self.base), asked=tuple(kept))
            return ranking_of(job)
        found = self.report.quantised.sensitivity
        return [] if found is None else [layer for layer in found.layers if layer not in kept]

    def convert(self, layers: Sequence[str]) -> tuple[ir.Model, PrecisionReport]:
        """See :meth:`Further.convert`."""
        options = replace(self.options, nodes_to_exclude=(*(row.node for row in self.report.kept), *layers))
        graph, found = _converted(self.context, options, self.exact.clone(), self.base)
        return graph, with_further(self.report, found)


def with_further(before: PrecisionReport, found: PrecisionReport) -> PrecisionReport:
    """Return the report ``found`` of a conversion in which further layers stay for accuracy than ``before``."""
    first = {row.node: row for row in before.kept}
    kept = tuple(first.get(row.node, replace(row, why="accuracy")) for row in found.kept)
    report = replace(found, kept=kept, base=before.base, search=before.search)
    if found.half is not None:
        reasons = {("accuracy" if reason == "asked" else reason): v for reason, v in found.half.kept.items()}
        return replace(report, half=replace(found.half, kept=reasons))
    assert found.quantised is not None
    assert before.quantised is not None
    sensitivity = before.quantised.sensitivity
    return replace(report, quantised=replace(found.quantised, kept_by="accuracy", sensitivity=sensitivity))


def as_chosen(report: PrecisionReport, chosen: KeepFile, checkpoint: str) -> PrecisionReport:
    """Return a report with what the file of layers says of them."""
    rows = {row.node: row for row in report.kept}
    kept = tuple(replace(rows[e.node], why=e.why, share=e.share) for e in chosen.layers if e.node in rows)
    other = chosen.checkpoint_sha256 != checkpoint
    note = f"the layers to keep were chosen for {chosen.model} with other weights" if other else ""
    return replace(report, kept=kept, notes=(*report.notes, *([note] if note else [])))


def trace_with_rows(
    context: ExportContext, folder: Path, name: str = "base"
) -> tuple[ir.Model, ParityReport | None, Path]:
    """Trace the network once, and verify its raw rows in fp32, in a file of that name.

    Returns:
        The graph, which gives the raw rows and, with NMS, the candidates from the same layers; the report on the rows,
        None if nothing is checked; and the file with the raw rows, in ``folder``.

    Raises:
        ParityError: the rows do not agree with the model.
    """
    graph = _traced(context, *context.plan.module_with_rows(context.fused))
    rows = with_outputs(graph, context.rows_plan.outputs)
    if context.rows.output.two_stages:
        with_known_roi_align(rows)
    finalize_graph(rows, context.rows, context.rows_plan, context.fused)
    base = folder / "base" / f"{name}.onnx"  # in a separate folder, which is removed before the others are published
    base.parent.mkdir()
    write(rows, base, sum(c.size for c in initializers_of(rows)))
    del rows
    verification = context.verification
    return graph, verification.check_fp32(base, context.rows_plan, context.rows) if verification else None, base


def with_outputs(graph: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy of a graph with some of its outputs and the nodes that they need; weights are not copied."""
    new = graph.clone()
    kept = [value for value in new.graph.outputs if value.name in names]
    new.graph.outputs.clear()
    new.graph.outputs.extend(kept)
    common.RemoveUnusedNodesPass()(new)
    common.RemoveUnusedOpsetsPass()(new)
    return new


def _job_of(context: ExportContext, options: PrecisionOptions, graph: ir.Model, base: Path) -> HalfJob:
    """The conversion of a graph to fp16 or bf16."""
    assert context.inputs is not None
    assert options.half is not None
    return HalfJob(
        graph=graph,
        kind=options.half,
        inputs=context.inputs,
        spec=context.rows,
        rows=lambda converted: with_outputs(converted, context.rows_plan.outputs),
        half_io=options.half_io,
        exported={str(node.name) for node in with_outputs(graph, context.plan.outputs).graph},
        verification=context.verification,
        asked=named_nodes(graph, options),
        search=options.nodes_to_exclude == "auto",
        base=base if options.cache else None,
        progress=context.progress,
    )


def _convert_to_half(
    context: ExportContext, options: PrecisionOptions, kind: HalfType, graph: ir.Model, base: Path
) -> tuple[ir.Model, PrecisionReport]:
    """Convert to fp16 or bf16, and check the graph in torch."""
    done = convert_half(_job_of(context, options, graph, base))
    return done.graph, half_report(kind, done)


def half_report(kind: HalfType, done: HalfConversion) -> PrecisionReport:
    """Return the report of a conversion to fp16 or bf16."""
    found = PrecisionReport(kind, None, {}, half=done.report, in_torch=done.parity, notes=done.notes)
    return replace(found, kept=done.kept, search=done.search)


def named_nodes(graph: ir.Model, options: PrecisionOptions) -> tuple[str, ...]:
    """Return the nodes that stay in fp32 because the options name them, or the layers that they are.

    Raises:
        UsageError: a name or pattern matches none.
    """
    if isinstance(options.nodes_to_exclude, str):
        return ()
    labels = {str(node.name): label_of(node) for node in graph.graph if node.op_type != "Constant"}
    return named_in(labels, options.nodes_to_exclude, "layer")


def quantized(
    graph: ir.Model, base: Path, spec: ModelSpec, options: PrecisionOptions, progress: Progress = SILENT
) -> PrecisionReport:
    """Quantize a graph in place to int8 or fp8, and return the report with the table of the layers that stay.

    Arguments and errors are those of :func:`deploykit.export.precision.quantize.quantize_graph`.
    """
    progress.step("quantizing")
    before = graph.clone()
    done = quantize_graph(graph, base, spec, options, Within("quantizing: ", progress))
    found, shares = done.sensitivity, {}
    if found is not None and found.whole:
        shares = {layer: part / found.whole for layer, part in found.layers.items()}
    why, more = "asked" if found is None else "error", 3 if options.keep_as == "fp32" else 1
    table = table_of(before, done.done.kept, why, shares, more)
    return PrecisionReport(options.precision, None, {}, quantised=done, kept=table)


def verify_precision(report: PrecisionReport, file: Path) -> PrecisionReport:
    """Read back the precision that a written file computes in, and return the report with it.

    Raises:
        ExportError: it is not the precision that was asked for.
    """
    counts = {kind: len(names) for kind, names in precisions_of(file).items()}
    check_precision(counts, report.precision, file.name)
    return replace(report, computes=counts)


def verify_file(
    verification: Verification,
    file: Path,
    plan: NmsPlan,
    spec: ModelSpec,
    precision: PrecisionReport | None,
    rows: ParityReport | None = None,
) -> ParityReport:
    """Compare the file with the reference values by the tolerance of its precision.

    ONNX Runtime runs the file if it supports the precision; otherwise torch computes it. ``rows``: the report on the
    rows that a file does not give, which becomes part of its own.

    Raises:
        ParityError: the file does not agree.
    """
    if precision is None:
        parity = verification.check_fp32(file, plan, spec)
        if rows is None:
            return parity
        notes = tuple(dict.fromkeys((*rows.notes, *parity.notes)))
        return replace(parity, differences=(*rows.differences, *parity.differences), notes=notes)
    limits, in_torch = LIMITS[spec.precision], precision.in_torch
    if spec.precision in ("bf16", "fp8"):  # ONNX Runtime's CPU provider has no bf16 convolutions and not all of fp8
        what = "bf16 convolutions" if spec.precision == "bf16" else "every fp8 file"
        note = f"ONNX Runtime's CPU provider does not run {what}: this was computed in torch"
        if plan.chosen:
            parity = _joined(verification.check_in_torch(ir.load(file), file.name, limits, (plan, spec)), in_torch)
            parity.raise_if_bad(file.name)
        else:
            parity = in_torch or verification.check_in_torch(ir.load(file), file.name, limits)
        return replace(parity, notes=(*parity.notes, note))
    parity = verification.check_reduced(file, plan, spec, limits)
    parity.raise_if_bad(file.name)
    return _joined(parity, in_torch)


def _joined(parity: ParityReport, other: ParityReport | None) -> ParityReport:
    """Add the comparisons of another report."""
    if other is None:
        return parity
    return replace(
        parity,
        differences=(*parity.differences, *other.differences),
        matchings=(*parity.matchings, *other.matchings),
    )
