"""A line for each request on standard error, written by a thread: a reader that is slow or gone, or a full disk, holds
no request up. Lines that find no room are counted, and the next line says so."""

from __future__ import annotations

import json
import queue
import threading
import time
from typing import Any, Literal, TextIO

from deploykit.runtime.serve.core.calls import Call

__all__ = ["RequestLog"]

ROOM = 10_000  # lines that wait


class RequestLog:
    """The log of a server.

    Args:
        file: where lines go.
        form: ``text``, ``json`` (one object a line) or ``none``.
    """

    def __init__(self, file: TextIO, form: Literal["text", "json", "none"]) -> None:
        self._file, self._form = file, form
        self._lines: queue.Queue[str | None] = queue.Queue(ROOM)
        self._lost = 0
        self._writer: threading.Thread | None = None
        if form != "none":
            self._writer = threading.Thread(target=self._write, daemon=True, name="request log")
            self._writer.start()

    def take(self, call: Call, status: int, client: str, cause: BaseException | None = None) -> None:
        """Write a line on a request that ended; ``cause``: the fault inside that ended it."""
        if self._writer is None:
            return
        facts: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + "Z",
            "request_id": call.id,
            "client": client,
            "request": _printable(call.what),
            "status": status,
            "ms": round(call.ms, 1),
        }
        if call.model:
            facts |= {"model": call.model, "version": str(call.version)}
        if call.stages:
            facts["stages_ms"] = {stage: round(ms, 1) for stage, ms in call.stages.items() if stage != "total"}
        if cause is not None:
            facts["cause"] = _printable(f"{type(cause).__name__}: {cause}")
        if self._lost:
            facts["lines_lost"], self._lost = self._lost, 0
        try:
            self._lines.put_nowait(json.dumps(facts) if self._form == "json" else _text(facts))
        except queue.Full:
            self._lost += 1 + facts.get("lines_lost", 0)

    def close(self) -> None:
        """Write what waits, for a second at most."""
        if self._writer is None:
            return
        try:
            self._lines.put(None, timeout=0.5)
        except queue.Full:
            return
        self._writer.join(1)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                print(line, file=self._file, flush=True)
            except (OSError, ValueError):  # full, or closed
                self._lost += 1


def _text(facts: dict[str, Any]) -> str:
    rest = {name: value for name, value in facts.items() if name not in ("time", "client", "request", "status", "ms")}
    told = " ".join(f"{name}={value}" for name, value in rest.items())
    return f"{facts['time']} {facts['client']} {facts['request']!r} {facts['status']} {facts['ms']} ms {told}"


def _printable(text: str) -> str:
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:500]
