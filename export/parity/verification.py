"""What an exported file must give: computed once from the checkpoint in float64, and held against every form of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
from torch import Tensor, nn

from deploykit.errors import ExportError, ParityError
from deploykit.export.nms.plan import NmsPlan
from deploykit.export.parity.compare import check_expected, expect
from deploykit.export.parity.float32_noise import Float32Cost, levels_apart, relaxed_tolerance, torch_float32
from deploykit.export.parity.onnx_file import check_file
from deploykit.export.parity.report import ParityReport
from deploykit.export.sessions.onnx_in_torch import OnnxInTorchSession
from deploykit.export.sessions.torch_module import TorchSession, spec_of_module
from deploykit.models.families.vitdet.mask_rcnn import with_thresholds
from deploykit.models.registry import ReferenceModel
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.parity.expected import ParityInputs, ReferenceOutputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import ModelSpec

__all__ = ["Verification", "largest_values"]


@dataclass
class Verification:
    """The model, its folded copy and the images of the check; what they give is computed when it is first needed.

    ``rows`` is the spec of the network with raw rows, whatever is exported behind them.
    """

    model: ReferenceModel
    fused: nn.Module
    rows: ModelSpec
    feeds: ParityInputs
    progress: Progress = SILENT
    _expected: ReferenceOutputs | None = None
    _limits: Tolerance = field(default_factory=Tolerance)

    @property
    def expected(self) -> ReferenceOutputs:
        """What the checkpoint and the folded model give, in float64, with the limits that hold for fp32."""
        if self._expected is None:
            self.progress.step("checking")
            torch_spec = spec_of_module(self.model)
            open_conf = replace(self.rows.thresholds, conf=0.0)  # of a network with NMS inside: all that it ranks
            references = {
                name: TorchSession(with_thresholds(module, open_conf), torch_spec, exact=True)
                for name, module in (("the checkpoint", self.model.module), ("the folded model", self.fused))
            }
            self._expected = expect(
                references,
                replace(self.rows, thresholds=open_conf),
                self.feeds,
                once={"the folded model"},
                closing=True,
                progress=self._details,
            )
        return replace(self._expected, limits=self._limits)

    def check_fp32(self, file: Path, plan: NmsPlan, spec: ModelSpec) -> ParityReport:
        """Hold an fp32 file to the tolerances of fp32; where float32 itself exceeds them, to wider ones.

        Raises:
            ParityError: it does not agree.
        """
        expected = self.expected
        self.progress.step("checking")
        parity = check_file(plan, expected, file, spec, self._details)
        if not parity.ok:
            parity = self._relaxed(parity, file, plan, spec)
        parity.raise_if_bad(file.name)
        self._limits = parity.tolerance
        return parity

    def _relaxed(self, parity: ParityReport, file: Path, plan: NmsPlan, spec: ModelSpec) -> ParityReport:
        """The report by the tolerances that float32 allows this network, or the failed one if it explains nothing."""
        expected = self.expected
        self._details.step("what float32 costs")
        torch_spec = replace(spec_of_module(self.model), thresholds=self.rows.thresholds)
        modules = self.fused, self.model.module
        cost = Float32Cost.of(
            {
                "PyTorch": [torch_float32(expected, module, torch_spec) for module in modules],
                "ONNX Runtime": levels_apart(file, plan, spec, expected, self._details),
            }
        )
        limits = relaxed_tolerance(parity.tolerance, cost)
        if limits is None or not cost.explains(parity):
            return parity
        again = check_file(plan, expected, file, spec, self._details, limits)
        return replace(again, notes=(*again.notes, cost.note(limits))) if again.ok else parity

    def check_reduced(self, file: Path, plan: NmsPlan, spec: ModelSpec, limits: Tolerance) -> ParityReport:
        """Hold a file of reduced precision to its limits in ONNX Runtime; the report may be bad."""
        expected = self.expected
        self.progress.step("checking")
        return check_file(plan, expected, file, spec, self._details, limits)

    def check_in_torch(self, graph: ir.Model, name: str, limits: Tolerance) -> ParityReport:
        """Hold a graph with raw rows to its limits in torch, each tensor rounded to its own type; the report may be
        bad.

        Raises:
            ParityError: a tensor overflows.
        """
        expected = self.expected
        self.progress.step("checking")
        broken: list[str] = []

        def observe(tensor: str, value: Tensor) -> None:
            if not value.float().isfinite().all():
                broken.append(tensor)

        with OnnxInTorchSession(graph, observe=observe) as session:
            parity = check_expected(expected, f"{name} in torch", session, self.rows, limits, self._details)
        if broken:
            raise ParityError(f"{name} was not kept: its tensor {broken[0]!r} has values that are not finite")
        return parity

    @property
    def _details(self) -> Progress:
        """The steps of the check, behind a common prefix."""
        return Within("checking: ", self.progress)


def largest_values(
    graph: ir.Model, feeds: ParityInputs, progress: Progress, *, finite: bool = True
) -> dict[str, float]:
    """The largest absolute value of every float tensor of an fp32 graph, over all images of a check.

    Without ``finite`` NaN counts as infinite: NMS divides 0 by 0 where boxes have no area.

    Raises:
        ExportError: a tensor has values that are not finite.
    """
    found: dict[str, float] = {}

    def observe(name: str, value: Tensor) -> None:
        if not value.numel():
            return
        most = float(value.abs().max())
        if finite and not math.isfinite(most):
            raise ExportError(f"the tensor {name!r} has values that are not finite: no range follows from them")
        found[name] = max(found.get(name, 0.0), math.inf if math.isnan(most) else most)

    with OnnxInTorchSession(graph, observe=observe) as session:
        (info,) = session.inputs
        for label, image in feeds.images.items():
            progress.step(f"measuring: {label}")
            slots = info.shape[0] or 1
            if session.accepts_shape((slots, *image.shape[1:])):
                session.run({info.name: image.repeat(slots, 0)})
    return found
