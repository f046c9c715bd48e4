"""The findings of a check of the installation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["DoctorReport", "Item", "State"]

State = Literal["broken", "slow", "warning", "missing", "ok"]
"""``broken``: it is installed and does not work; ``slow``: it took too long to tell; ``warning``: it works, and may not
always; ``missing``: an option."""

ORDER: tuple[State, ...] = ("broken", "slow", "warning", "missing", "ok")


@dataclass(frozen=True)
class Item:
    """One thing that was looked at: what it is, how it is, and what to do."""

    section: str
    name: str
    state: State
    says: str
    do: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """Everything that was looked at."""

    items: tuple[Item, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that is installed is broken."""
        return not self.broken

    @property
    def broken(self) -> tuple[Item, ...]:
        """What is installed and does not work."""
        return tuple(item for item in self.items if item.state == "broken")

    @property
    def slow(self) -> bool:
        """Whether something took too long to tell whether it works."""
        return any(item.state == "slow" for item in self.items)

    @property
    def problems(self) -> tuple[Item, ...]:
        """What is broken, then what took too long to tell, then what may break."""
        return tuple(sorted((i for i in self.items if i.state in ORDER[:3]), key=lambda item: ORDER.index(item.state)))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        return {"ok": self.ok, "items": [dataclasses.asdict(item) for item in self.items]}
