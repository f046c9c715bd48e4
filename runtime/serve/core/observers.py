"""What hears of requests that ended: the log, the numbers and the traces of a server."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from deploykit.runtime.serve.core.calls import Call
from deploykit.runtime.serve.core.logs import RequestLog
from deploykit.runtime.serve.core.metrics import Metrics
from deploykit.runtime.serve.core.registry import Registry
from deploykit.runtime.serve.core.tracing import Tracing

__all__ = ["Observers"]


@dataclass(frozen=True)
class Observers:
    """The log, the numbers and the traces of a server."""

    log: RequestLog
    metrics: Metrics
    tracing: Tracing

    @staticmethod
    def of(registry: Registry) -> Observers:
        """Return those of a registry's server, which writes its log on standard error."""
        return Observers(RequestLog(sys.stderr, registry.options.log_format), Metrics(registry), Tracing())

    def take(self, call: Call, status: int, client: str, cause: BaseException | None = None) -> None:
        """Tell of a request that ended; ``cause``: the fault inside that ended it."""
        self.metrics.take(call, status)
        self.log.take(call, status, client, cause)
        self.tracing.take(call, status)

    def close(self) -> None:
        """Write and send what waits."""
        self.log.close()
        self.tracing.close()
