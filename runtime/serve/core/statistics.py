"""How many requests a model answered, and how long their stages took in all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Statistics"]

INPUT, NETWORK, OUTPUT = ("read", "letterbox", "prepare"), ("inference",), ("postprocess",)
"""The stages of an answer that come before the network, are the network, and follow it."""


@dataclass
class Statistics:
    """The numbers of a model since it was opened, in milliseconds.

    Attributes:
        count, failed: requests that were answered, and that failed.
        ms, failed_ms: how long they took.
        queue_ms, input_ms, network_ms, output_ms: the stages of those that were answered.
        last: when the last one was answered, in seconds since the epoch.
    """

    count: int = 0
    failed: int = 0
    ms: float = 0.0
    failed_ms: float = 0.0
    queue_ms: float = 0.0
    input_ms: float = 0.0
    network_ms: float = 0.0
    output_ms: float = 0.0
    last: float = 0.0

    def take(self, stages: Mapping[str, float], ms: float) -> None:
        """Count a request that was answered."""
        self.count += 1
        self.ms += ms
        self.queue_ms += stages.get("queue", 0.0)
        self.input_ms += sum(stages.get(each, 0.0) for each in INPUT)
        self.network_ms += sum(stages.get(each, 0.0) for each in NETWORK)
        self.output_ms += sum(stages.get(each, 0.0) for each in OUTPUT)
        self.last = time.time()

    def fail(self, ms: float) -> None:
        """Count a request that failed."""
        self.failed += 1
        self.failed_ms += ms
