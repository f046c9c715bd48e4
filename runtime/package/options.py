"""Options of packages, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deploykit.errors import UsageError

__all__ = ["TritonOptions"]


@dataclass(frozen=True)
class TritonOptions:
    """Options of a model repository.

    Attributes:
        max_batch: images that Triton may put into one run of a network with a dynamic batch; an engine's profile may
            allow fewer.
        batch_window: milliseconds that an image waits for others to run with.
        instances: copies of the network, which run at the same time.
        workers: copies of each of the two steps around it, each a process.
        device: what runs the network: ``cpu``, ``cuda``, or ``auto``, which leaves it to Triton.

    Raises:
        UsageError: a number is below its least value.
    """

    max_batch: int = 8
    batch_window: float = 2.0
    instances: int = 1
    workers: int = 2
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        for name in ("max_batch", "instances", "workers"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.batch_window <= 10_000:
            raise UsageError(f"batch_window must be 0 to 10000 milliseconds, got {self.batch_window}")
