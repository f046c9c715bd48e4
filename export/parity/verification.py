"""Verification of exported files: reference values, computed once in float64, and the checks against them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from deploykit.errors import ExportError, ParityError
from deploykit.export.nms.graph import CONF
from deploykit.export.nms.plan import NmsPlan
from deploykit.export.options import TRACED
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.compare import check_expected, expect
from deploykit.export.parity.extremes import Extremes, extreme_inputs, with_plain
from deploykit.export.parity.float32_noise import (
    ONNX_RUNTIME,
    PYTORCH,
    Float32Cost,
    levels_apart,
    relaxed_tolerance,
    torch_float32,
)
from deploykit.export.parity.nms import check_detections, opened_detections
from deploykit.export.parity.onnx_file import check_file, reference_for
from deploykit.export.parity.reference_cache import SWITCH, keep_values, kept_values, key_of
from deploykit.export.parity.report import ParityReport
from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.export.sessions.torch_module import TorchSession, spec_of_module
from deploykit.models.families.vitdet.mask_rcnn import with_thresholds
from deploykit.models.fuse import fuse_model
from deploykit.models.registry import ReferenceModel
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.backends import ort
from deploykit.runtime.parity.expected import Batch, ParityInputs, ReferenceOutputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import input_arrays
from deploykit.spec import ModelSpec

__all__ = ["Verification", "largest_values"]

CHECKPOINT, FUSED = "the checkpoint", "the fused model"


@dataclass
class Verification:
    """The checks of every file of one export against the same reference values, which are computed on first use.

    ``model`` gives the reference values on ``feeds``. ``fused`` is its folded copy, which only a file that does not
    agree asks for: None is folded again then. ``rows`` is the spec of the network with raw rows, also if NMS is
    exported after them. ``divides``: whether the traced graph does, so that whole images of one colour are run too.
    """

    model: ReferenceModel
    fused: nn.Module | None
    rows: ModelSpec
    feeds: ParityInputs
    progress: Progress = SILENT
    divides: bool = False
    _expected: ReferenceOutputs | None = None
    _extremes_done: bool = False
    _limits: Tolerance = field(default_factory=Tolerance)

    @property
    def expected(self) -> ReferenceOutputs:
        """The reference values of the checkpoint in float64, with the tolerance of fp32."""
        if self._expected is None:
            self.progress.step("checking")
            self._expected = self._computed()
        return replace(self._expected, limits=self._limits)

    def _computed(self) -> ReferenceOutputs:
        """Return the reference values: those of an earlier export, or computed ones, which are kept for later ones."""
        open_conf = replace(self.rows.thresholds, conf=0.0)  # NMS inside then gives detections of any score
        network, opened = with_thresholds(self.model.module, open_conf), replace(self.rows, thresholds=open_conf)
        session = TorchSession(network, spec_of_module(self.model), exact=True)
        key = key_of(network, replace(opened, opset=TRACED, precision="fp32"), self.feeds)
        kept = None if key is None else kept_values(key, self.feeds)
        if kept is not None:
            self.progress.message(f"reference values of an earlier export are used: {SWITCH}=0 computes them again")
            layout = export_adapter_of(opened).compared()
            how = {CHECKPOINT: f"{', '.join(session.providers)}, of an earlier export"}
            return ReferenceOutputs(self.feeds, {CHECKPOINT: kept}, how, layout, chosen=opened.output.nms_inside)
        release_freed_memory()
        computed = expect({CHECKPOINT: session}, opened, self.feeds, closing=True, progress=self._details)
        release_freed_memory()
        if key is not None:
            keep_values(key, dict(computed.rows[CHECKPOINT]))
        return computed

    def check_fp32(self, file: Path, plan: NmsPlan, spec: ModelSpec) -> ParityReport:
        """Check an fp32 file by the tolerance of fp32, or by a wider one if float32 rounding itself exceeds that.

        Raises:
            ParityError: the file does not agree.
        """
        expected = self.expected
        self.progress.step("checking")
        parity = check_file(plan, expected, file, spec, self._details)
        if not parity.ok:
            parity, fault = self.check_relaxed(parity, file, plan, spec)
            if not parity.ok:
                raise ParityError(
                    f"{file.name} does not agree with its source and was not kept: {parity.worst}; "
                    f"{fault or self._step_at_fault()}"
                )
        self._limits = parity.tolerance
        return self._with_extremes(parity, file, plan, spec)

    def _with_extremes(self, parity: ParityReport, file: Path, plan: NmsPlan, spec: ModelSpec) -> ParityReport:
        """Add the comparison on images that show nothing, of the first file that is checked, if its graph divides.

        A file with a node of NMS that only a library of ours has is left out.

        Raises:
            ParityError: the file does not agree, or gives values that are not finite.
        """
        if self._extremes_done or plan.mode == "plugin" or not self.divides:
            return parity
        self._extremes_done = True
        canvas, parameters = spec.input, sum(p.numel() for p in self.model.module.parameters())
        feeds = extreme_inputs(canvas, self.feeds.first, parameters)
        extremes = Extremes(feeds, file.name, file, spec, parity.tolerance, self._reference, self._details)
        with ort.open_session(file, provider="cpu") as session:
            if spec.output.nms_inside:
                extremes.check_finite(session)
                return parity
            differences, notes, computed = extremes.compare(session)
        return replace(
            parity,
            references={**parity.references, **computed.computed},
            differences=(*parity.differences, *differences),
            notes=(*parity.notes, *notes),
        )

    def _reference(self, feeds: ParityInputs, exact: bool) -> ReferenceOutputs:
        """Compute the raw rows of the checkpoint on images, in float32 or in float64."""
        session = TorchSession(self.model.module, spec_of_module(self.model), exact=exact)
        name = CHECKPOINT if exact else f"{CHECKPOINT} in float32"
        return expect({name: session}, self.rows, feeds, closing=True, progress=self._details)

    def check_relaxed(
        self, parity: ParityReport, file: Path, plan: NmsPlan, spec: ModelSpec
    ) -> tuple[ParityReport, str]:
        """Check again by the wider tolerance of float32; return the failed report if rounding does not explain it.

        The text is a fault of ONNX Runtime's optimizer that explains it, usually empty.
        """
        if not all(np.isfinite(d.limit_ratio) for d in parity.differences):  # which no rounding explains
            return parity, ""
        expected = self.expected
        self._details.step("what float32 costs")
        torch_spec = replace(spec_of_module(self.model), thresholds=self.rows.thresholds)
        modules = self._folded(), self.model.module
        cost = Float32Cost.of(
            {
                PYTORCH: [torch_float32(expected, module, torch_spec) for module in modules],
                ONNX_RUNTIME: levels_apart(file, plan, spec, expected, self._details),
            }
        )
        if fault := cost.optimizer_fault():
            return parity, fault
        limits = relaxed_tolerance(parity.tolerance, cost)
        if limits is None or not cost.explains(parity):
            return parity, ""
        again = check_file(plan, expected, file, spec, self._details, limits)
        return (replace(again, notes=(*again.notes, cost.note(limits))) if again.ok else parity), ""

    def _folded(self) -> nn.Module:
        if self.fused is None:
            self.fused = fuse_model(self.model.module)
        return self.fused

    def _step_at_fault(self) -> str:
        """A sentence on which step changed the numbers of a file that does not agree: fusing, or what came after it.

        The fused model runs in float64 on the first image. It need not run for a file that agrees with the checkpoint.
        """
        self._details.step("the fused model")
        open_conf = replace(self.rows.thresholds, conf=0.0)
        session = TorchSession(with_thresholds(self._folded(), open_conf), spec_of_module(self.model), exact=True)
        rows = replace(self.rows, thresholds=open_conf)
        label = next(iter(self.feeds.images))
        first = ParityInputs({label: self.feeds.images[label]}, (Batch(label, (label,)),))
        found = check_expected(replace(self.expected, feeds=first), FUSED, session, rows)
        if found.ok:
            return f"{FUSED} agrees with the checkpoint, so it changed in the export"
        return f"{FUSED} does not agree with the checkpoint either ({found.worst}): fusing changed it"

    def check_reduced(self, file: Path, plan: NmsPlan, spec: ModelSpec, limits: Tolerance) -> ParityReport:
        """Check a file of reduced precision in ONNX Runtime; the caller looks at the report's verdict."""
        expected = self.expected
        self.progress.step("checking")
        return check_file(plan, expected, file, spec, self._details, limits)

    def check_in_torch(
        self,
        graph: ir.Model,
        name: str,
        limits: Tolerance,
        exported: tuple[NmsPlan, ModelSpec] | None = None,
        about: Callable[[str], str] = lambda tensor: "",
    ) -> ParityReport:
        """Check a graph in torch, each tensor rounded to its own type; the caller looks at the report's verdict.

        ``exported``: the plan and the spec of the export; None: the graph gives the raw rows. ``about`` returns what is
        known of a tensor, for the message.

        Raises:
            ParityError: a tensor overflows.
        """
        expected, spec = self.expected, self.rows
        if exported is not None:
            expected, spec = reference_for(exported[0], expected, exported[1]), exported[1]
        self.progress.step("checking")
        broken: list[str] = []

        def observe(tensor: str, value: Tensor) -> None:
            if not value.float().isfinite().all():
                broken.append(tensor)

        with OnnxInTorchSession(graph, observe=observe) as session:
            parity = _checked(expected, f"{name} in torch", session, spec, limits, self._details)
            (info,), seen = session.inputs, ""
            for label, image in with_plain(self.feeds, self.rows.input, graph.graph).items():
                if label not in self.feeds.images and not broken:
                    seen = f" on an image of one colour ({label})"
                    self._details.step(f"{name} in torch on {label}")
                    session.run(input_arrays(info, image.repeat(info.shape[0] or 1, 0)))
        release_freed_memory()
        if broken:
            told = f"; {known}" if (known := about(broken[0])) else ""
            raise ParityError(
                f"{name} was not kept: its tensor {broken[0]!r} has values that are not finite{seen}{told}"
            )
        return parity

    def failing_in_torch(self, graph: ir.Model, name: str, limits: Tolerance, order: Sequence[str]) -> str:
        """Return the first batch in this order on which a graph fails :meth:`check_in_torch`; empty: it passes all.

        After these come the images of one colour, by their labels.
        """
        feeds, broken = self.expected.feeds, False
        batches = {batch.name: batch for batch in feeds.batches}

        def observe(tensor: str, value: Tensor) -> None:
            nonlocal broken
            broken = broken or not bool(value.isfinite().all())

        with OnnxInTorchSession(graph, observe=observe) as session:
            for batch in order:
                expected = replace(self.expected, feeds=replace(feeds, batches=(batches[batch],)))
                if not _checked(expected, name, session, self.rows, limits).ok or broken:
                    return batch
            (info,) = session.inputs
            for label, image in with_plain(feeds, self.rows.input, graph.graph).items():
                if label not in feeds.images:
                    session.run(input_arrays(info, image.repeat(info.shape[0] or 1, 0)))
                    if broken:
                        return label
        return ""

    @property
    def _details(self) -> Progress:
        """The progress of the check, whose steps get a common prefix."""
        return Within("checking: ", self.progress)


def _checked(
    expected: ReferenceOutputs,
    name: str,
    session: OnnxInTorchSession,
    spec: ModelSpec,
    limits: Tolerance,
    progress: Progress = SILENT,
) -> ParityReport:
    """Compare a graph in torch; of a detector in two stages detections of any score too, as in ONNX Runtime."""
    if not spec.output.two_stages:
        return check_expected(expected, name, session, spec, limits, progress)
    every = session.with_values({CONF: np.zeros(1, np.float32)})
    opened = opened_detections(expected, name, every, spec, progress)
    return check_detections(expected, name, session, spec, limits, opened=opened, progress=progress)


def largest_values(
    graph: ir.Model,
    feeds: ParityInputs,
    progress: Progress,
    *,
    finite: bool = True,
    where: dict[str, str] | None = None,
) -> dict[str, float]:
    """Measure the largest absolute value of every float tensor of an fp32 graph, over all images of a check.

    Unless ``finite``, NaN counts as infinite: NMS divides 0 by 0 for boxes without area. ``where`` receives the label
    of the image on which each tensor was largest.

    Raises:
        ExportError: a tensor has values that are not finite.
    """
    found: dict[str, float] = {}
    now = ""

    def observe(name: str, value: Tensor) -> None:
        if not value.numel():
            return
        most = float(value.abs().max())
        if finite and not math.isfinite(most):
            raise ExportError(
                f"the tensor {name!r} has values that are not finite, so its range cannot be measured (on {now})"
            )
        most = math.inf if math.isnan(most) else most
        if most > found.get(name, -1.0):
            found[name] = most
            if where is not None:
                where[name] = now

    with OnnxInTorchSession(graph, observe=observe) as session:
        (info,) = session.inputs
        for label, image in feeds.images.items():
            progress.step(f"measuring: {label}")
            now = label
            slots = info.shape[0] or 1
            if session.accepts_shape((slots, *image.shape[1:])):
                session.run({info.name: image.repeat(slots, 0)})
    release_freed_memory()
    return found
