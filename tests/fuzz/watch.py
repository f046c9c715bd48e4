"""What a reader of untrusted files must not do, seen by Python's audit events: run, import, open, connect."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.target import Failed

__all__ = ["nothing_runs"]

EVENTS = {"compile", "exec", "import", "code.__new__", "function.__new__", "open", "webbrowser.open"}
PREFIXES = ("ctypes.", "marshal.", "os.", "pickle.", "pty.", "shutil.", "socket.", "subprocess.", "urllib.")

_allowed: frozenset[str] = frozenset()
_watches = False
_seen: list[str] = []
_hooked = False


def _look(event: str, args: tuple[Any, ...]) -> None:
    if not _watches or not (event in EVENTS or event.startswith(PREFIXES)):
        return
    if event == "open" and str(args[0]) in _allowed and not args[2] & (os.O_WRONLY | os.O_RDWR):
        return
    _seen.append(f"{event} {args!r}"[:200])


@contextlib.contextmanager
def nothing_runs(*paths: Path) -> Iterator[None]:
    """Watch what the block does; to open ``paths`` for reading is all that it may.

    Raises:
        Failed: it ran, imported, opened or connected to something. A hook cannot be taken away, so it stays.
    """
    global _allowed, _hooked, _watches  # noqa: PLW0603  # audit hooks have no state of their own
    if not _hooked:
        sys.addaudithook(_look)
        _hooked = True
    _seen.clear()
    _allowed, _watches = frozenset(map(str, paths)), True
    try:
        yield
    finally:
        _watches = False
        if _seen:
            raise Failed(f"reading a file must run nothing, but: {_seen[:5]}")
