"""Where an export writes: found out before the work begins, and filled only when everything is verified."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploykit.errors import OutputError, writing

__all__ = ["check_place", "folder_beside", "move_into_place"]


def check_place(out: Path) -> None:
    """Find out now, not after a minute of work, that the result cannot be written.

    Raises:
        OutputError: it cannot.
    """
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f".{out.name}.{os.getpid()}.probe")
        probe.write_bytes(b"")
        probe.unlink()
    if out.is_dir():
        raise OutputError(f"cannot write {out}: it is a folder")


@contextlib.contextmanager
def folder_beside(out: Path) -> Iterator[Path]:
    """A temporary folder on the same disk: files are born there under their final names, and moved when verified."""
    folder = out.with_name(f".{out.stem}.{os.getpid()}.partial")
    with writing(out):
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def move_into_place(folder: Path, out: Path, companions: Sequence[Path]) -> None:
    """Move the files of ``folder`` beside ``out``: the weights before the graph that names them, the report last.

    ``companions`` that are not among them are of an older file and say nothing about this one: they are removed.
    """
    files = sorted(folder.iterdir(), key=lambda p: (p.suffix != ".data", p.suffix == ".json"))
    for file in files:
        file.replace(out.with_name(file.name))
    for companion in companions:
        if companion.name not in [file.name for file in files]:
            companion.unlink(missing_ok=True)
