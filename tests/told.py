"""A listener that hands every share of a long job to a function."""

from __future__ import annotations

from collections.abc import Callable

from deploykit.progress import Progress


class Told(Progress):
    """Calls ``tell`` with what is done and its share."""

    def __init__(self, tell: Callable[[str, float], object]) -> None:
        self.tell = tell

    def share(self, what: str, done: float) -> None:
        self.tell(what, done)
