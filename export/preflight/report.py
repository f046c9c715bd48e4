"""What a preflight found: findings at nodes, and one verdict for each runtime."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["TARGETS", "TENSORRT", "Finding", "Level", "PreflightReport", "Target", "Verdict"]

Target = Literal["onnxruntime", "tensorrt-10", "tensorrt-11", "tensorrt-rtx"]
TARGETS: tuple[Target, ...] = ("onnxruntime", "tensorrt-10", "tensorrt-11", "tensorrt-rtx")
TENSORRT: tuple[Target, ...] = TARGETS[1:]

Level = Literal["refused", "unknown", "doubt", "note"]
"""``refused``: stops the runtime; ``unknown``: an operator that no list names; ``doubt``: a list does not say that it
is taken, and it may be; ``note``: it is taken, and something has to be known."""


@dataclass(frozen=True)
class Finding:
    """Something that a runtime does not take, or that has to be known.

    ``node`` and ``op`` are empty where it is about the whole file. ``do`` says what avoids it.
    """

    level: Level
    targets: tuple[Target, ...]
    why: str
    do: str = ""
    node: str = ""
    op: str = ""

    @property
    def where(self) -> str:
        """The node, as a person looks for it."""
        return f"{self.op} {self.node!r}" if self.op else "the file"


@dataclass(frozen=True)
class Verdict:
    """Whether one runtime takes the file.

    ``says``: ``loaded here``, ``built here``, ``expected (table)``, ``in doubt (table)``, ``unknown operator``,
    ``refused``, or ``not tried``. ``by``: what says so: a version, or a table and its version. ``why``: the node that
    stops it, or what is known besides.
    """

    target: Target
    says: str
    by: str
    why: str = ""

    @property
    def takes(self) -> bool | None:
        """Whether the runtime takes it; None: not known."""
        if self.says in ("not tried", "in doubt (table)", "unknown operator"):
            return None
        return self.says != "refused"


@dataclass(frozen=True)
class PreflightReport:
    """The verdicts on a file, and everything that was found in it."""

    file: str
    opset: int
    ir_version: int
    nodes: int
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no runtime that was asked for refuses the file."""
        return all(verdict.takes is not False for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        data = dataclasses.asdict(self)
        for entry, verdict in zip(data["verdicts"], self.verdicts, strict=True):
            entry["takes"] = verdict.takes
        return {"ok": self.ok, **data}
