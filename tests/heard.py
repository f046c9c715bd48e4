"""A progress that remembers what it hears."""

from __future__ import annotations

from deploykit.progress import Progress


class Heard(Progress):
    """``steps`` and ``messages`` as they came; ``shares``: what each was of, and how much of it."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.shares: list[tuple[str, float]] = []
        self.messages: list[str] = []

    def step(self, name: str) -> None:
        self.steps.append(name)

    def share(self, what: str, done: float) -> None:
        self.shares.append((what, done))

    def message(self, text: str) -> None:
        self.messages.append(text)
