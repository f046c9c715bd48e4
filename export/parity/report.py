"""What a parity check says: every comparison, the limits, and the verdict."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from deploykit.errors import ParityError
from deploykit.export.matching import Matching
from deploykit.runtime.parity.differences import Difference
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import json_safe

__all__ = ["ParityReport"]


@dataclass(frozen=True)
class ParityReport:
    """Everything that was compared. ``references``: their names and what computed them. ``ok`` is the verdict."""

    references: dict[str, str]
    differences: tuple[Difference, ...]
    matchings: tuple[Matching, ...]
    notes: tuple[str, ...] = ()
    tolerance: Tolerance = field(default_factory=Tolerance)

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its limits, where there are limits."""
        return not self.tolerance.judged or (all(d.ok for d in self.differences) and all(m.ok for m in self.matchings))

    @property
    def worst(self) -> Difference | Matching | None:
        """The first failure, raw values before detections, the largest first; None if there is none."""
        if self.ok:
            return None
        bad = sorted((d for d in self.differences if not d.ok), key=lambda d: -d.limit_ratio)
        return bad[0] if bad else next((m for m in self.matchings if not m.ok), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the parity report file beside an artefact is this. JSON has no NaN: it becomes the word."""
        data = dataclasses.asdict(self)
        for entry, difference in zip(data["differences"], self.differences, strict=True):
            entry["ok"] = difference.ok
            entry["used"] = entry.pop("limit_ratio")  # its name in files
        for entry, matching in zip(data["matchings"], self.matchings, strict=True):
            entry["ok"] = matching.ok
            del entry["limits"]  # they are the report's
        told: dict[str, Any] = json_safe({"ok": self.ok, **data})
        return told

    def to_json(self) -> str:
        """The text of the parity report file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def raise_if_bad(self, artefact: str) -> None:
        """Turn a failed report into an error that names the worst output.

        Raises:
            ParityError: something is beyond its limit.
        """
        if self.worst is not None:
            raise ParityError(f"{artefact} does not agree with its source and was not kept: {self.worst}")
