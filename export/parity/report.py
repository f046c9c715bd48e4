"""The report of a parity check: every comparison, the tolerance and the verdict."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
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
    """The result of a parity check; ``references`` maps each reference to the provider that computed it."""

    references: dict[str, str]
    differences: tuple[Difference, ...]
    matchings: tuple[Matching, ...]
    notes: tuple[str, ...] = ()
    tolerance: Tolerance = field(default_factory=Tolerance)

    @property
    def ok(self) -> bool:
        """Whether every comparison is within the tolerance; always true if the tolerance is for reporting only."""
        return not self.tolerance.judged or (all(d.ok for d in self.differences) and all(m.ok for m in self.matchings))

    @property
    def worst(self) -> Difference | Matching | None:
        """The worst failure: the largest difference of raw values, or else the first failed matching."""
        if self.ok:
            return None
        bad = sorted((d for d in self.differences if not d.ok), key=lambda d: -d.limit_ratio)
        return bad[0] if bad else next((m for m in self.matchings if not m.ok), None)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data, the content of the parity report file; NaN becomes text, because JSON has none."""
        data = dataclasses.asdict(self)
        for entry, difference in zip(data["differences"], self.differences, strict=True):
            entry["ok"] = difference.ok
            entry["used"] = entry.pop("limit_ratio")  # its name in files
        for entry, matching in zip(data["matchings"], self.matchings, strict=True):
            entry["ok"] = matching.ok
            del entry["limits"]  # the report has them
        report: dict[str, Any] = json_safe({"ok": self.ok, **data})
        return report

    def to_json(self, about: Mapping[str, Any]) -> str:
        """Return the text of the parity report file; ``about``: which file it is about, by its hash."""
        return json.dumps({**about, **self.to_dict()}, indent=1) + "\n"

    def raise_if_bad(self, artefact: str) -> None:
        """Raise an error that names the worst failure.

        Raises:
            ParityError: a comparison is beyond the tolerance.
        """
        if self.worst is not None:
            raise ParityError(f"{artefact} does not agree with its source and was not kept: {self.worst}")
