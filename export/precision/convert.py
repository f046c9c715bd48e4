"""The precision of an export: which one is asked for, how the graph gets it, and what came of it.

The fp32 graph is verified first, and then converted: so what is lost by precision and what by export never mix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from torch import nn

from deploykit.errors import UsageError
from deploykit.export.graph.finalize import finish, write
from deploykit.export.graph.passes import initializers_of
from deploykit.export.nms.plan import NmsPlan
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import LIMITS
from deploykit.export.parity.verification import Verification, largest_values
from deploykit.export.precision.calibration import Calibration
from deploykit.export.precision.half import HalfIO, HalfReport, to_half
from deploykit.export.precision.quantize import QuantReport, quantize_file, quantize_like
from deploykit.export.precision.read_back import check_precision, precisions_of
from deploykit.export.step_timer import Clock
from deploykit.runtime.parity.expected import Feeds
from deploykit.spec import ModelSpec

__all__ = ["PRECISIONS", "Job", "Lowering", "Precision", "PrecisionReport", "lower", "read_back"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")

LEAST_OPSET = {"bf16": 22, "fp8": 19}
"""Below, ONNX has no convolution of bf16 and no quantisation to fp8."""


@dataclass(frozen=True)
class Lowering:
    """What is asked about precision.

    Args:
        precision: of weights and activations; see docs/precision.md.
        half_io: which of the file's own inputs and outputs are fp16 too; only with ``fp16``.
        calibration: the images from which the ranges of int8 and fp8 are measured.
        keep: layers that are not quantised: ``auto`` by measurement, ``none``, or names.
        reduce_range: int8 weights of 7 bits, for CPUs whose int8 kernels saturate.
        cache: keep measured ranges for the next export of the same model with the same images.
    """

    precision: Precision = "fp32"
    half_io: HalfIO = "none"
    calibration: Calibration | None = None
    keep: Literal["auto", "none"] | tuple[str, ...] = "auto"
    reduce_range: bool = False
    cache: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"a precision is one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.half_io != "none" and self.precision != "fp16":
            raise UsageError(f"--half-io {self.half_io} goes with --precision fp16, not with {self.precision}")
        if (self.calibration is not None) != self.quantised:
            raise UsageError(
                f"--precision {self.precision} needs images to measure ranges with: --calib DIR, a folder of "
                "images like those that it will see"
                if self.quantised
                else f"calibration is for int8 and fp8, not for {self.precision}"
            )

    @property
    def quantised(self) -> bool:
        """Whether weights and activations become integers or fp8 by measured ranges."""
        return self.precision in ("int8", "fp8")

    def opset(self, asked: int) -> tuple[int, str]:
        """The opset to export with, and what to say where it is not the one that was asked for."""
        least = LEAST_OPSET.get(self.precision, 0)
        if asked >= least:
            return asked, ""
        return least, f"opset {least} instead of {asked}: below it ONNX has no {self.precision}"


@dataclass(frozen=True)
class PrecisionReport:
    """What a conversion did. ``base``: the verification of the fp32 graph that was converted; None: not checked.

    ``computes``: how many convolutions and matrix products compute in which precision, read back from the file.
    """

    precision: Precision
    base: ParityReport | None
    computes: dict[str, int]
    half: HalfReport | None = None
    quantised: QuantReport | None = None
    in_torch: ParityReport | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "precision": self.precision,
            "computes": self.computes,
            "base": self.base.to_dict() if self.base else None,
            "half": dataclasses.asdict(self.half) if self.half else None,
            "quantised": self.quantised.to_dict() if self.quantised else None,
            "in_torch": self.in_torch.to_dict() if self.in_torch else None,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Job:
    """An export as far as it is known before its graph is: how to trace a plan, and what is asked."""

    trace: Callable[[NmsPlan], ir.Model]
    plan: NmsPlan
    rows_plan: NmsPlan
    spec: ModelSpec
    rows: ModelSpec
    fused: nn.Module
    feeds: Feeds
    verification: Verification | None
    clock: Clock
    on_progress: Callable[[str, float], None] = lambda *_: None


def lower(job: Job, lowering: Lowering, folder: Path) -> tuple[ir.Model, PrecisionReport, Path]:
    """Trace, verify and convert.

    Returns:
        The converted graph, still without NMS; the report; and the verified fp32 file with raw rows, in ``folder``.

    Raises:
        ParityError: the fp32 graph does not agree with the model. ExportError: the conversion is not possible.
    """
    if lowering.half_io in ("output", "both") and job.spec.output.nms_inside:
        raise UsageError(f"--half-io {lowering.half_io} is for raw rows: with NMS inside outputs are float32")
    graph = job.trace(job.rows_plan)
    finish(graph, job.rows, job.rows_plan, job.fused)
    base = folder / "base" / "base.onnx"  # in a folder of its own, which is dropped before the others are moved
    base.parent.mkdir()
    write(graph, base, sum(c.size for c in initializers_of(graph)))
    verified = job.verification.full(base, job.rows_plan, job.rows) if job.verification else None
    if lowering.quantised:
        graph, report = _quantised(job, lowering, graph, base)
    else:
        graph, report = _half(job, lowering, graph, base)
    return graph, replace(report, base=verified), base


def _half(job: Job, lowering: Lowering, graph: ir.Model, base: Path) -> tuple[ir.Model, PrecisionReport]:
    """fp16 or bf16. Layers kept for their range are stored as half, unless the check in torch fails with them."""
    assert lowering.precision in ("fp16", "bf16")
    kind: Literal["fp16", "bf16"] = "fp16" if lowering.precision == "fp16" else "bf16"
    job.clock("converting")
    largest = largest_values(graph, job.feeds, lambda step: job.clock(f"converting: {step}"))
    store, notes, parity = True, [], None
    while True:
        rows_io = lowering.half_io if job.plan.mode == "none" else "none"
        done = to_half(graph, kind, largest=largest, half_io=rows_io, store=store)
        if job.verification is None:
            break
        parity = job.verification.by_types(graph, lowering.precision, LIMITS[lowering.precision])
        if parity.ok or not done.stored:
            parity.raise_if_bad(f"{kind} in torch")
            break
        store = False
        notes.append(f"the weights of {len(done.stored)} layers stay fp32: stored as {kind} they were not good enough")
        graph = ir.load(base)
    if job.plan.mode != "none":
        graph = job.trace(job.plan)
        job.clock("converting")
        largest = largest_values(graph, job.feeds, lambda step: job.clock(f"converting: {step}"), finite=False)
        done = to_half(graph, kind, largest=largest, half_io=lowering.half_io, store=store)
    if done.flushed:
        worst = max(done.flushed, key=done.flushed.__getitem__)
        notes.append(
            f"weights too small for {kind} became 0 in {len(done.flushed)} tensors, at most "
            f"{100 * done.flushed[worst]:.2g} % of {worst}"
        )
    report = PrecisionReport(lowering.precision, None, {}, half=done, in_torch=parity, notes=tuple(notes))
    return graph, report


def _quantised(job: Job, lowering: Lowering, graph: ir.Model, base: Path) -> tuple[ir.Model, PrecisionReport]:
    """int8 or fp8, by ranges measured with the network of raw rows; with NMS the same layers get the same scales."""
    assert lowering.calibration is not None
    kind: Literal["int8", "fp8"] = "int8" if lowering.precision == "int8" else "fp8"
    job.clock("quantising")
    done = quantize_file(
        base,
        job.rows,
        graph,
        lowering.calibration,
        kind=kind,
        keep=lowering.keep,
        reduce_range=lowering.reduce_range,
        cache=lowering.cache,
        on_step=lambda step: job.clock(f"quantising: {step}"),
        on_progress=lambda what, share: job.on_progress(f"quantising: {what}", share),
    )
    if job.plan.mode != "none":
        graph = job.trace(job.plan)
        job.clock("quantising")
        quantize_like(base, graph, done)
    return graph, PrecisionReport(lowering.precision, None, {}, quantised=done)


def read_back(report: PrecisionReport, file: Path) -> PrecisionReport:
    """The report with what the written file computes in.

    Raises:
        ExportError: that is not what was asked for.
    """
    counts = {kind: len(names) for kind, names in precisions_of(file).items()}
    check_precision(counts, report.precision, file.name)
    return replace(report, computes=counts)
