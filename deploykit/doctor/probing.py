"""Runs jobs in a process of their own, and begins a new one after a job that ended it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from deploykit.strict_json import JsonError, parse_json

__all__ = ["Told", "probe"]

Told = dict[str, Any]
"""What a job gave; ``error`` says why it failed, and ``slow`` after how many seconds it was ended."""

SECONDS = 60.0  # of one job; torch on a cold disk takes ten
POLL = 0.1  # seconds


def probe(jobs: Iterable[str], *, seconds: float = SECONDS) -> dict[str, Told]:
    """Do jobs of :mod:`deploykit.doctor.probe`, and return what each gave.

    A job that crashes, or does not end within ``seconds``, is an error of that job; the others go on without it.
    """
    left, found = list(jobs), dict[str, Told]()
    while left:
        lines, why = _run(left, seconds)
        begun = ""
        for line in lines:
            if "begins" in line:
                begun = str(line["begins"])
            elif "ends" in line:
                found[str(line.pop("ends"))] = line
        if begun and begun not in found:
            found[begun] = why
        rest = [job for job in left if job not in found]
        if len(rest) == len(left):  # the process did not even begin
            return found | dict.fromkeys(rest, why)
        left = rest
    return found


def _run(jobs: Sequence[str], seconds: float) -> tuple[list[Told], Told]:
    """Return the lines of one process, and why it ended before the last job."""
    here = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(dict.fromkeys([str(here), *filter(None, sys.path)]))  # what this process can import
    flags = ["-S"] if sys.flags.no_site else []
    command = [sys.executable, *flags, "-m", "deploykit.doctor.probe", *jobs]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, "PYTHONPATH": path}
        )
        try:
            code = _code_of(started, out, seconds)
        finally:
            started.kill()
            started.wait()
        out.seek(0)
        err.seek(0)
        lines = [line for line in map(_parsed, out.read().decode(errors="replace").splitlines()) if line is not None]
        last = err.read().decode(errors="replace").strip().splitlines()[-1:] or [""]
    return lines, _why(code, last[0], seconds)


def _code_of(process: subprocess.Popen[bytes], out: IO[bytes], seconds: float) -> int | None:
    """Wait for the end of a process; None: it wrote nothing to ``out`` for so many seconds, in which a job ends."""
    size, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(min(POLL, seconds))
        if (now := os.fstat(out.fileno()).st_size) != size:
            size, until = now, time.monotonic() + seconds
    return None


def _parsed(line: str) -> Told | None:
    try:
        value = parse_json(line)
    except JsonError:
        return None
    return value if isinstance(value, dict) else None


def _why(code: int | None, last: str, seconds: float) -> Told:
    if code is None:
        return {"error": f"it did not end within {seconds:g} s", "slow": seconds}
    if code < 0:
        return {"error": f"it ended its process ({signal.Signals(-code).name})"}
    return {"error": f"it ended its process with code {code}{f' ({last})' if last else ''}"}
