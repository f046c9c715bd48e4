"""Spans of OpenTelemetry for requests and their stages, where its package is installed and somebody asks for them.

What to do with spans is said by OpenTelemetry's own environment variables: ``OTEL_TRACES_EXPORTER`` is ``otlp`` or
``console``; without it, or with ``none``, spans go to the provider that the surrounding program has set, if any.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from deploykit.errors import MissingDependencyError, UsageError, import_extra
from deploykit.runtime.serve.core.calls import Call
from deploykit.version import __version__

__all__ = ["Tracing"]

EXPORTER = "OTEL_TRACES_EXPORTER"
ORDER = ("read", "letterbox", "prepare", "queue", "inference", "postprocess")
"""The stages of a request in the order of time."""


class Tracing:
    """Makes a span of a request that ended, and one of each of its stages.

    A stage's times are those of its image: stages that a batch shares are divided among its images.

    Args:
        provider: of the tracer; None: the one that the environment asks for, or the surrounding program's.

    Raises:
        UsageError: ``OTEL_TRACES_EXPORTER`` names an exporter that is unknown here.
        MissingDependencyError: it asks for one whose package is not installed.
    """

    def __init__(self, provider: Any = None) -> None:
        self._tracer: Any = None
        self._provider: Any = None
        asked = os.environ.get(EXPORTER, "none").strip().lower()
        if asked != "none" and provider is None:
            self._provider = provider = _provider_of(asked)
        if provider is None and find_spec("opentelemetry") is None:
            return
        trace = import_module("opentelemetry.trace")
        self._propagation = import_module("opentelemetry.trace.propagation.tracecontext")
        self._kinds, self._in_span = trace.SpanKind, trace.set_span_in_context
        self._tracer = trace.get_tracer("deploykit", __version__, provider)

    def take(self, call: Call, status: int) -> None:
        """Make the spans of a request that ended."""
        if self._tracer is None:
            return
        parent = self._propagation.TraceContextTextMapPropagator().extract(call.trace)
        about = {"deploykit.request_id": call.id, "deploykit.status": status}
        if call.model:
            about |= {"deploykit.model": call.model, "deploykit.version": str(call.version)}
        span = self._tracer.start_span(
            call.what, context=parent, kind=self._kinds.SERVER, attributes=about, start_time=call.began_at
        )
        if not span.is_recording():
            span.end()
            return
        inside, place = self._in_span(span), call.began_at
        for stage in _in_order(call.stages):
            end = place + int(1e6 * call.stages[stage])
            self._tracer.start_span(stage, context=inside, start_time=place).end(end)
            place = end
        span.end(max(place, time.time_ns()))

    def close(self) -> None:
        """Send what waits."""
        if self._provider is not None:
            self._provider.shutdown()


def _in_order(stages: Iterable[str]) -> list[str]:
    return sorted((each for each in stages if each in ORDER), key=ORDER.index)


def _provider_of(exporter: str) -> Any:
    """Return a provider that sends spans in batches."""
    import_extra("opentelemetry.sdk", "otel")
    sdk, export = import_module("opentelemetry.sdk.trace"), import_module("opentelemetry.sdk.trace.export")
    if exporter == "console":
        sender = export.ConsoleSpanExporter()
    elif exporter == "otlp":
        try:
            sender = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter").OTLPSpanExporter()
        except ImportError as e:
            raise MissingDependencyError(
                f"{EXPORTER}=otlp needs a package: pip install opentelemetry-exporter-otlp-proto-http"
            ) from e
    else:
        raise UsageError(f"{EXPORTER} must be otlp, console or none, got {exporter!r}")
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.BatchSpanProcessor(sender))
    return provider
