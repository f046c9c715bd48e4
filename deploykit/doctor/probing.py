"""Runs jobs in a process of their own, and begins a new one after a job that ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from deploykit.strict_json import JsonError, parse_json

__all__ = ["Told", "probe"]

Told = dict[str, Any]
"""What a job gave; ``error`` says why it failed."""

SECONDS = 60.0  # of one process; torch on a cold disk takes ten


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
            found[begun] = {"error": why}
        rest = [job for job in left if job not in found]
        if len(rest) == len(left):  # the process did not even begin
            return found | {job: {"error": why} for job in rest}
        left = rest
    return found


def _run(jobs: Sequence[str], seconds: float) -> tuple[list[Told], str]:
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
            code: int | None = started.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            started.kill()
            started.wait()
        out.seek(0)
        err.seek(0)
        lines = [line for line in map(_parsed, out.read().decode(errors="replace").splitlines()) if line is not None]
        last = err.read().decode(errors="replace").strip().splitlines()[-1:] or [""]
    return lines, _why(code, last[0], seconds)


def _parsed(line: str) -> Told | None:
    try:
        value = parse_json(line)
    except JsonError:
        return None
    return value if isinstance(value, dict) else None


def _why(code: int | None, last: str, seconds: float) -> str:
    if code is None:
        return f"it did not end within {seconds:g} s"
    if code < 0:
        return f"it ended its process ({signal.Signals(-code).name})"
    return f"it ended its process with code {code}{f' ({last})' if last else ''}"
