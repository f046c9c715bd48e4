"""The report of an export: the file, an account of its size, its interface and its parity."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from deploykit.export.graph.interface import Constant, Interface
from deploykit.export.graph.passes import initializers_of, interface_of
from deploykit.export.graph.versions import OLDEST_SUPPORTED, oldest_runtime
from deploykit.export.parity.report import ParityReport
from deploykit.export.precision.convert import ExportContext, PrecisionReport
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.evaluate.compare import Comparison
from deploykit.runtime.files import format_size
from deploykit.spec import ModelSpec

__all__ = ["ExportReport", "report_of"]


def _release(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@dataclass(frozen=True)
class ExportReport:
    """The result of :func:`deploykit.export_onnx`; sizes are in bytes, times in seconds by step."""

    path: Path
    model: str
    size: int
    parameters: int
    weight_size: int
    constants: tuple[Constant, ...]
    checkpoint_size: int
    nodes: int
    opset: int
    ir_version: int
    inputs: tuple[Interface, ...]
    outputs: tuple[Interface, ...]
    spec: ModelSpec
    parity: ParityReport | None
    precision: PrecisionReport | None = None
    accuracy: Comparison | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def bytes_per_parameter(self) -> float:
        """The size of the file divided by the number of parameters."""
        return self.size / max(self.parameters, 1)

    @property
    def runtime(self) -> str:
        """The releases of ONNX Runtime that load the file; those older than 1.15 were not tried."""
        return f"ONNX Runtime {_release(oldest_runtime(self.opset, self.ir_version))} and newer"

    def runtime_notes(self) -> tuple[str, ...]:
        """Return a note if the file needs a newer ONNX Runtime than deploykit itself does."""
        if oldest_runtime(self.opset, self.ir_version) <= OLDEST_SUPPORTED:
            return ()
        needs = f"opset {self.opset} needs {self.runtime}, and deploykit runs with {_release(OLDEST_SUPPORTED)} already"
        return (f"{needs}: check what the file is for",)

    def why_this_size(self) -> str:
        """Return one sentence that accounts for every byte."""
        constants = sum(c.size for c in self.constants)
        largest = sorted((c for c in self.constants if c.size >= 1000), key=lambda c: -c.size)[:3]
        named = ", ".join(f"{'x'.join(map(str, c.shape))} {format_size(c.size)}" for c in largest)
        graph = self.size - self.weight_size - constants
        text = (
            f"{self.bytes_per_parameter:.2f} bytes per parameter: {self.parameters:,} weights in {self.spec.precision} "
            f"are {format_size(self.weight_size)}; constants "
            f"(grids, anchors, shapes) {format_size(constants)}{f', the largest {named}' if named else ''}; "
            f"the graph itself {format_size(graph)}"
        )
        if self.checkpoint_size:
            text += f"; the checkpoint has {format_size(self.checkpoint_size)}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data: every field, with the parity report in full."""
        data = dataclasses.asdict(dataclasses.replace(self, parity=None, precision=None, accuracy=None))
        data["path"] = str(self.path)
        data["bytes_per_parameter"] = self.bytes_per_parameter
        data["runtime"] = self.runtime
        data["parity"] = self.parity.to_dict() if self.parity else None
        data["accuracy"] = None
        if self.accuracy is not None:
            data["accuracy"] = {**self.accuracy.model.to_dict(), **self.accuracy.to_dict()}
        data["precision"] = self.precision.to_dict() if self.precision else None
        return data


def report_of(
    model: ReferenceModel,
    graph: ir.Model,
    spec: ModelSpec,
    context: ExportContext,
    out: Path,
) -> ExportReport:
    """Return the report before the file is written: its size, its parity and the checkpoint's size come later."""
    names = {name for name, _ in context.plan.module(context.fused).named_parameters()}
    stored = initializers_of(graph)
    weights = {c.name for c in stored if names.intersection(_weights_of(c.name))}
    return ExportReport(
        path=out,
        model=model.name,
        size=0,
        parameters=sum(p.numel() for p in context.fused.parameters()),
        weight_size=sum(c.size for c in stored if c.name in weights),
        constants=tuple(c for c in stored if c.name not in weights),
        checkpoint_size=0,
        nodes=sum(1 for _ in graph.graph),
        opset=graph.opset_imports[""],
        ir_version=graph.ir_version,
        inputs=interface_of(graph.graph.inputs),
        outputs=interface_of(graph.graph.outputs),
        spec=spec,
        parity=None,
        notes=model.all_notes,
    )


def _weights_of(name: str) -> tuple[str, ...]:
    """The parameters that an initializer may hold; its name may add ``_t`` (transposed) and the precision to theirs."""
    return name, name.rsplit("_", 1)[0], name.rsplit("_t_", 1)[0]
