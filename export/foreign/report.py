"""The report of a conversion of somebody's ONNX file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.export.parity.report import ParityReport
from deploykit.export.precision.convert import PrecisionReport
from deploykit.runtime.evaluate.compare import Comparison
from deploykit.spec import ModelSpec, json_safe, json_value

__all__ = ["ConversionReport"]


@dataclass(frozen=True)
class ConversionReport:
    """The result of :func:`deploykit.quantize_onnx`; sizes are in bytes, times in seconds by step.

    Attributes:
        path, size, sha256: the file that was written.
        source, source_size, source_sha256: the file that it was made from.
        opset, nodes: of the new file.
        spec: what the network is for; ``stamped`` says whether it is known, and so in the file. Else only its input
            means something: how the images of the calibration were prepared.
        prepared: what was done to the graph before its conversion, a phrase each.
        choice: the operators that choose at the end of the graph -> how many; from the first of them on nothing is
            converted. ``kept_layers`` of the layers come after it.
        precision: what became of the graph.
        parity: the comparison with the source, which holds.
        accuracy: what the accuracy gate measured.
        notes: what was assumed or noticed.
    """

    path: Path
    size: int
    sha256: str
    source: Path
    source_size: int
    source_sha256: str
    opset: int
    nodes: int
    spec: ModelSpec
    stamped: bool
    prepared: tuple[str, ...]
    choice: dict[str, int]
    kept_layers: int
    precision: PrecisionReport
    parity: ParityReport
    accuracy: Comparison | None = None
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data: every field, with the parity report in full."""
        apart = ("parity", "precision", "accuracy", "spec", "path", "source")
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in apart}
        accuracy = self.accuracy
        found: dict[str, Any] = {
            **data,
            "path": str(self.path),
            "source": str(self.source),
            "spec": json_value(self.spec),
            "precision": self.precision.to_dict(),
            "parity": self.parity.to_dict(),
            "accuracy": None if accuracy is None else {**accuracy.model.to_dict(), **accuracy.to_dict()},
        }
        return {name: json_safe(value) for name, value in found.items()}
