"""The report of an engine's build."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploykit.export.parity.report import ParityReport
from deploykit.runtime.engine_record import EngineRecord

__all__ = ["EngineReport"]


@dataclass(frozen=True)
class EngineReport:
    """The result of :func:`deploykit.build_engine`: the engine, its record, and the parity report if it ran."""

    path: Path
    record: EngineRecord
    parity: ParityReport | None
    seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data: the record's fields, with the path, the times and the parity report in full."""
        parity = self.parity.to_dict() if self.parity else None
        return {**self.record.to_dict(), "path": str(self.path), "parity": parity, "seconds": self.seconds}
