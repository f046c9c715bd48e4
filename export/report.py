"""The report of an export: the file, an account of its size, its interface and its parity."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.export.graph.interface import Constant, Interface
from deploykit.export.graph.versions import OLDEST_SUPPORTED, oldest_runtime
from deploykit.export.parity.report import ParityReport
from deploykit.export.precision.convert import PrecisionReport
from deploykit.runtime.evaluate.compare import AccuracyComparison
from deploykit.runtime.files import format_size
from deploykit.spec import ModelSpec

__all__ = ["ExportReport"]


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
    accuracy: AccuracyComparison | None = None
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
