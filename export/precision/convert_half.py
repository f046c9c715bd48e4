"""Conversion of a verified fp32 graph to fp16 or bf16, and the search for what must stay in fp32 beside the rules.

The converted graph is checked in torch. Where it is beyond the tolerance, a search names a small set of nodes with
which it is not: by what each rounding adds to the error first, then by trials with these nodes really in fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
from torch import Tensor

from deploykit.errors import ExportError, ParityError
from deploykit.export.options import HalfIO
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.extremes import with_plain
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import LIMITS
from deploykit.export.parity.verification import largest_values
from deploykit.export.precision.half import HalfReport, HalfType, to_half
from deploykit.export.precision.half_rules import LARGEST, compute_nodes
from deploykit.export.precision.search.costs import table_of
from deploykit.export.precision.search.half_parts import by_groups, error_in_half, half_parts, order_of
from deploykit.export.precision.search.journal import Journal, digest_of_file
from deploykit.export.precision.search.kept import KeptLayer
from deploykit.export.precision.search.minimal import smallest_set
from deploykit.export.precision.search.undecided import undecided
from deploykit.export.precision.sensitivity import outputs_of
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.parity.expected import ParityInputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import ModelSpec

__all__ = ["HalfCheck", "HalfConversion", "HalfJob", "HalfSearch", "convert_half", "ranking_of"]

RANKED = 2  # images of the run that ranks nodes
BYTES = 2  # that a value of fp32 has more than one of half


class HalfCheck(Protocol):
    """What checks a converted graph: :class:`deploykit.export.parity.verification.Verification`, or as it does."""

    def check_in_torch(
        self, graph: ir.Model, name: str, limits: Tolerance, *, about: Callable[[str], str] = ...
    ) -> ParityReport:
        """Check a graph in torch, each tensor rounded to its own type; the caller looks at the report's verdict."""

    def failing_in_torch(self, graph: ir.Model, name: str, limits: Tolerance, order: Sequence[str]) -> str:
        """Return the first batch in this order on which a graph fails; empty: it passes all."""


@dataclass(frozen=True, kw_only=True)
class HalfJob:
    """What is converted, and how it is checked.

    Attributes:
        graph: the fp32 graph; it is left as it is.
        kind: the type.
        inputs: the images on which values are measured.
        spec: the spec of the raw rows.
        rows: returns the part of a graph that gives the raw rows.
        half_io: which inputs and outputs of the graph become half.
        exported: the names of the nodes that the report counts.
        measured: the graph that is run to measure values, under the same names; None: ``graph``.
        verification: the check in torch; None: nothing is checked, so nothing is searched.
        asked: nodes that stay in fp32 because they were named.
        search: look for further ones if the check fails.
        base: the fp32 file, for the key of what is kept of a search; None: nothing is kept.
        progress: receives the steps.
    """

    graph: ir.Model
    kind: HalfType
    inputs: ParityInputs
    spec: ModelSpec
    rows: Callable[[ir.Model], ir.Model]
    half_io: HalfIO = "none"
    exported: Collection[str] | None = None
    measured: ir.Model | None = None
    verification: HalfCheck | None = None
    asked: tuple[str, ...] = ()
    search: bool = True
    base: Path | None = None
    progress: Progress = SILENT


@dataclass(frozen=True)
class HalfSearch:
    """How the nodes that stay in fp32 were found.

    ``candidates``: how many nodes could stay; ``trials``: how many graphs were converted and run for it, ``recalled``
    of which an earlier search had run. ``ranked_by``: ``derivatives``, or ``groups`` where none reaches all nodes.
    ``error``: of the outputs with none of them in fp32, by :meth:`deploykit.export.outputs.ExportAdapter.error`; of a
    detector in two stages of all that its layers give.
    ``failed``: what was beyond the tolerance.
    """

    candidates: int
    trials: int
    recalled: int
    ranked_by: str
    error: float
    failed: str

    def line(self) -> str:
        """Return a sentence for the screen."""
        again = f", {self.recalled} of them in an earlier search" if self.recalled else ""
        return (
            f"{self.trials} sets of {self.candidates} nodes were tried{again}, ranked by {self.ranked_by}; with none "
            f"in fp32, {self.failed}"
        )


@dataclass(frozen=True)
class HalfConversion:
    """A converted graph, the reports on it, and the nodes that a search or names keep in fp32."""

    graph: ir.Model
    report: HalfReport
    parity: ParityReport | None
    notes: tuple[str, ...] = ()
    kept: tuple[KeptLayer, ...] = ()
    search: HalfSearch | None = None


@dataclass
class _Tried:
    """One conversion: the graph, its report and its check."""

    graph: ir.Model
    report: HalfReport
    parity: ParityReport | None = None
    error: ParityError | None = None

    @property
    def ok(self) -> bool:
        return self.error is None and (self.parity is None or self.parity.ok)


def convert_half(job: HalfJob) -> HalfConversion:
    """Convert to fp16 or bf16, check the graph in torch, and keep further nodes in fp32 if the check asks for it.

    Weights of layers kept in fp32 for their range are stored as half, unless the check fails with them.

    Raises:
        ParityError: the check fails, and no set of nodes helps. ExportError: the conversion is not possible.
    """
    job.progress.step("converting")
    conversion = _Conversions(job)
    notes: list[str] = []
    tried = conversion.tried(job.asked)
    if not tried.ok and tried.report.stored:
        notes.append(
            f"the weights of {len(tried.report.stored)} layers stay fp32: stored as {job.kind} they exceed the "
            "tolerance"
        )
        conversion.store = False
        tried = conversion.tried(job.asked)
    why, kept, search = "asked", job.asked, None
    shares: Mapping[str, float] = {}
    if not tried.ok and job.search and not job.asked:
        searching = _Search(job, conversion, tried)
        kept, search, shares, why = searching.kept(), searching.report(), searching.shares, "tolerance"
        tried = conversion.tried(kept)
        reasons = {("tolerance" if reason == "asked" else reason): v for reason, v in tried.report.kept.items()}
        tried.report = replace(tried.report, kept=reasons)
    if tried.error is not None:
        raise tried.error
    if tried.parity is not None:
        tried.parity.raise_if_bad(f"{job.kind} in torch")
    report = replace(tried.report, out_of_range=conversion.out_of_range(tried.report))
    if report.flushed:
        worst = max(report.flushed, key=report.flushed.__getitem__)
        notes.append(
            f"weights too small for {job.kind} became 0 in {len(report.flushed)} tensors, at most "
            f"{100 * report.flushed[worst]:.2g} % of {worst}"
        )
    table = table_of(job.graph, kept, why, shares, BYTES)
    return HalfConversion(tried.graph, report, tried.parity, tuple(notes), table, search)


def ranking_of(job: HalfJob) -> list[str]:
    """Return the nodes that may stay in fp32 beside those that are asked for, what adds most to the error first."""
    conversions = _Conversions(job)
    searching = _Search(job, conversions, _Tried(*conversions.converted(job.asked)))
    return searching.allowed([name for name in searching.ranked() if name not in job.asked])


@dataclass
class _Conversions:
    """Conversions of one graph with different nodes in fp32."""

    job: HalfJob
    store: bool = True
    where: dict[str, str] = field(default_factory=dict)
    largest: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        job, within = self.job, Within("converting: ", self.job.progress)
        measured = job.measured or job.graph
        seen = replace(job.inputs, images=with_plain(job.inputs, job.spec.input, measured.graph))
        self.largest = largest_values(measured, seen, within, where=self.where)

    def converted(self, kept: Collection[str]) -> tuple[ir.Model, HalfReport]:
        """Convert a copy with these nodes in fp32."""
        job, graph = self.job, self.job.graph.clone()
        try:
            report = to_half(
                graph,
                job.kind,
                largest=self.largest,
                nodes_to_exclude=kept,
                half_io=job.half_io,
                store=self.store,
                about=job.exported,
            )
        except ExportError as e:
            most = max(self.largest, key=self.largest.__getitem__, default="")
            if job.kind == "fp16" and self.largest.get(most, 0.0) > LARGEST:
                raise ExportError(f"{e}; {self._told(most)}; bf16 has the range of fp32") from e
            raise
        return graph, report

    def tried(self, kept: Collection[str]) -> _Tried:
        """Convert and check; a check that ends early is part of the result."""
        graph, report = self.converted(kept)
        found = _Tried(graph, report)
        job = self.job
        if job.verification is not None:
            try:
                found.parity = job.verification.check_in_torch(
                    job.rows(graph), job.kind, LIMITS[job.kind], about=self._told
                )
            except ParityError as e:
                found.error = e
        return found

    def out_of_range(self, report: HalfReport) -> dict[str, tuple[float, str]]:
        """Tensor that fp16 has not the range for -> its largest value, and the image that it was measured on."""
        if report.dtype != "fp16":
            return {}
        kept = set(report.kept.get("range", ()))
        near = {
            str(value.name): self.largest[str(value.name)]
            for node in self.job.graph.graph
            if str(node.name) in kept
            for value in (*node.inputs, *node.outputs)
            if value is not None and str(value.name) in self.largest
        }
        over = [name for name, value in near.items() if value > LARGEST] or sorted(near, key=near.__getitem__)[-1:]
        return {name: (near[name], self.where.get(name, "")) for name in sorted(over, key=lambda name: -near[name])}

    def _told(self, tensor: str) -> str:
        """What is known of a tensor: its largest value in fp32, and on which image."""
        for name in (tensor, tensor.removesuffix(f"_as_{self.job.kind}"), tensor.removesuffix(f"_{self.job.kind}")):
            if name in self.largest:
                return f"{name!r} reaches {self.largest[name]:.4g} on {self.where[name]} in fp32"
        return ""


class _Search:
    """The search for nodes that must stay in fp32.

    Attributes:
        shares: node -> its share of the error, to first order; that of several nodes together is divided among them.
    """

    def __init__(self, job: HalfJob, conversions: _Conversions, whole: _Tried) -> None:
        assert job.verification is not None
        self.job, self._conversions, self._whole = job, conversions, whole
        self._rows = job.rows(job.graph)
        every = job.graph.clone()
        ruled = to_half(every, job.kind, largest=conversions.largest, half_io=job.half_io)
        stay = {name for names in ruled.kept.values() for name in names}
        self._half = [str(n.name) for n in self._rows.graph if str(n.name) not in stay and n.op_type != "Constant"]
        self._compute = [str(node.name) for node in compute_nodes(self._rows.graph)]
        worst = whole.parity.worst if whole.parity is not None else None
        self._failed = str(whole.error or worst)
        self._order = _failing_first(job.inputs, whole.parity)
        self._tried: set[tuple[str, ...]] = set()
        self._ranking: dict[str, Any] = {}
        self.shares: dict[str, float] = {}
        about = {"kind": job.kind, "io": job.half_io, "spec": job.spec.to_json(), "store": conversions.store}
        data = b"" if job.base is None else digest_of_file(job.base)
        self._journal = Journal(None) if job.base is None else Journal.of(data, job.inputs.images.values(), about)

    def kept(self) -> tuple[str, ...]:
        """Return the nodes.

        Raises:
            ParityError: no set helps.
        """
        ranked = self.ranked()
        allowed = self.allowed(ranked)
        self.job.progress.step("layers to keep: trials")
        found = smallest_set(allowed, self._holds)
        if found is None:
            raise ParityError(
                f"{self.job.kind} in torch does not agree with its source and was not kept: {self._failed}; no set of "
                f"nodes that stay in fp32 helps, of {len(allowed)} of {len(ranked)} that leave most layers in "
                f"{self.job.kind}"
            )
        return found

    def ranked(self) -> list[str]:
        """Return all candidates, what adds most to the error first."""
        self.job.progress.step("layers to keep: ranking")
        self._ranking = self._journal.recall(["ranking", *self._labels()], self._ranked)
        self.shares = self._ranking["shares"]
        found: list[str] = self._ranking["order"]
        return found

    def allowed(self, ranked: Sequence[str]) -> list[str]:
        """Return the candidates that may stay all together, of which the last layers may not: most must be half."""
        half, compute = set(self._half), set(self._compute)
        left = (2 * len(compute & half) - len(compute) - 1) // 2 - len(compute & set(self.job.asked))
        found = []
        for name in ranked:
            left -= name in compute
            if left >= 0 or name not in compute:
                found.append(name)
        return found

    def report(self) -> HalfSearch:
        """Return how it was found."""
        ranking = self._ranking
        recalled, trials = max(0, self._journal.recalled - 1), len(self._tried)  # less the ranking
        return HalfSearch(len(self._half), trials, recalled, ranking["by"], ranking["error"], self._failed)

    def _too_many(self, kept: Sequence[str]) -> bool:
        """Whether no more than half of the layers would compute in half."""
        half = set(self._half) - set(kept)
        return 2 * sum(name in half for name in self._compute) <= len(self._compute)

    def _holds(self, kept: tuple[str, ...]) -> bool:
        if self._too_many(kept):
            return False
        self._tried.add(kept)
        count = len(self._tried)
        self.job.progress.share(f"layers to keep, {count} sets tried", 1 - 0.9**count)
        failing = self._journal.recall(["trial", *sorted(kept)], lambda: self._failing(kept))
        if failing in self._order:  # it is likely to fail for the next set too
            self._order = [failing, *(name for name in self._order if name != failing)]
        return not failing

    def _failing(self, kept: tuple[str, ...]) -> str:
        assert self.job.verification is not None
        graph, _ = self._conversions.converted(kept)
        limits = LIMITS[self.job.kind]
        return self.job.verification.failing_in_torch(self.job.rows(graph), self.job.kind, limits, self._order)

    def _labels(self) -> list[str]:
        """The images to rank on: those of the batches that failed first."""
        batches = {batch.name: batch for batch in self.job.inputs.batches}
        labels = [label for name in self._order for label in batches[name].images]
        return list(dict.fromkeys(labels))[:RANKED]

    def _ranked(self) -> dict[str, Any]:
        """Put all candidates in order; what no derivative reaches is put in order by groups of neighbours."""
        rows, kind, half = self._rows, self.job.kind, self._half
        slots = rows.graph.inputs[0].shape[0] if rows.graph.inputs[0].shape else 1
        images = [
            self.job.inputs.images[label].repeat(slots if isinstance(slots, int) else 1, 0) for label in self._labels()
        ]
        if self.job.spec.output.two_stages:
            rows, exact, further = undecided(rows, half, lambda graph: outputs_of(graph, images))
        else:
            exact, further = outputs_of(rows, images), []
        adapter = export_adapter_of(self.job.spec)

        def error(number: int, found: Mapping[str, Tensor]) -> Tensor:
            return adapter.error(exact[number], found)

        how = (kind, images, error, further)
        whole, parts, stopped = half_parts(rows, half, *how)
        order, by = order_of(parts), "derivatives"
        shares = dict.fromkeys(half, 0.0)
        for part in parts:
            for name in part.nodes:
                shares[name] += part.size / len(part.nodes) / whole if whole else 0.0
        rest = [name for name in half if name not in set(order)]
        if rest and (stopped or not order):
            by = "groups" if not order else "derivatives and groups"
            rest = by_groups(rest, lambda kept: error_in_half(rows, [n for n in half if n not in kept], *how))
        else:
            rest.reverse()  # what is near the outputs first
        return {"order": [*order, *rest], "by": by, "error": whole, "shares": shares}


def _failing_first(inputs: ParityInputs, parity: ParityReport | None) -> list[str]:
    """The names of the batches, the one that is furthest beyond the tolerance first."""
    ratios = {batch.name: 0.0 for batch in inputs.batches}
    for each in parity.differences if parity is not None else ():
        if each.input in ratios:
            ratios[each.input] = max(ratios[each.input], each.limit_ratio)
    return sorted(ratios, key=lambda name: -ratios[name])
