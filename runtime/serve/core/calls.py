"""One request: its number, its deadline, and what is known of it for logs, metrics and traces."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "call_of", "request_id"]

KEY = "deploykit.call"
ID = re.compile(r"[\w.:+/=-]{1,128}", re.ASCII)


@dataclass(eq=False)
class Call:
    """One request.

    Attributes:
        id: its number, which the client may have given.
        protocol: ``http`` or ``grpc``.
        what: its method and path.
        model, version: what it is for; empty: no model.
        stages: milliseconds of each stage.
        began, began_at: when it came: by the clock of durations in seconds, and in nanoseconds since the epoch.
        trace: the trace that it belongs to, as its headers tell.
    """

    id: str
    protocol: str
    what: str
    model: str = ""
    version: int | str = ""
    stages: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    began_at: int = field(default_factory=time.time_ns)
    trace: Mapping[str, str] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        """Milliseconds since it came."""
        return 1e3 * (time.perf_counter() - self.began)


def request_id(given: str) -> str:
    """Return the number of a request: the one that the client gives, or a new one."""
    return given if ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def call_of(scope: MutableMapping[str, Any]) -> Call:
    """Return the call of a request of ASGI, which is made where there is none."""
    if KEY not in scope:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        kept = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        what = f"{scope.get('method', '')} {scope.get('path', '')}"
        scope[KEY] = Call(request_id(headers.get("x-request-id", "")), "http", what, trace=kept)
    found: Call = scope[KEY]
    return found
