"""What the server counts and times, in the format of Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from deploykit.runtime.serve.core.calls import Call
from deploykit.runtime.serve.core.registry import Registry

__all__ = ["Metrics"]

M = TypeVar("M", Counter, Histogram)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The numbers of one server.

    Requests are counted by model, protocol and status; a status of gRPC is written as that of HTTP. Stages are those of
    an answer: ``queue``, ``read``, ``letterbox`` or ``prepare``, ``inference``, ``postprocess``.
    """

    def __init__(self, registry: Registry) -> None:
        self._collected = CollectorRegistry()
        self._labelled: dict[tuple[object, ...], Any] = {}
        own = self._collected
        self._requests = Counter(
            "deploykit_requests", "Requests that ended", ("model", "protocol", "status"), registry=own
        )
        self._seconds = Histogram(
            "deploykit_request_seconds", "Seconds of a request", ("model", "protocol"), buckets=SECONDS, registry=own
        )
        self._stages = Histogram(
            "deploykit_stage_seconds", "Seconds of a stage", ("model", "stage"), buckets=SECONDS, registry=own
        )
        self._collected.register(_Now(registry))

    def take(self, call: Call, status: int) -> None:
        """Count a request that ended."""
        self._of(self._requests, call.model, call.protocol, str(status)).inc()
        self._of(self._seconds, call.model, call.protocol).observe(call.ms / 1e3)
        for stage, ms in call.stages.items():
            if stage != "total":
                self._of(self._stages, call.model, stage).observe(ms / 1e3)

    def _of(self, metric: M, *labels: str) -> M:
        """Return a metric with labels, which takes the library half as long as the count itself and more."""
        key = (id(metric), *labels)
        if key not in self._labelled:
            self._labelled[key] = metric.labels(*labels)
        return cast("M", self._labelled[key])

    def text(self) -> bytes:
        """Return all numbers in Prometheus' text format."""
        return generate_latest(self._collected)


class _Now(Collector):
    """What the models do at this moment."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        ready = GaugeMetricFamily("deploykit_ready", "Whether the server takes requests")
        ready.add_metric((), float(self._registry.ready))
        yield ready
        labels = ("model", "version")
        active = GaugeMetricFamily("deploykit_active_requests", "Requests that wait or run", labels=labels)
        waiting = GaugeMetricFamily("deploykit_waiting_requests", "Requests that wait for a batch", labels=labels)
        batches = GaugeMetricFamily("deploykit_batches", "Batches that ran, by their size", labels=(*labels, "size"))
        for model in self._registry.models:
            of = (model.source.name, str(model.source.version))
            active.add_metric(of, model.active)
            waiting.add_metric(of, model.batcher.waiting)
            for size, count in sorted(model.batcher.sizes.items()):
                batches.add_metric((*of, str(size)), count)
        yield from (active, waiting, batches)
