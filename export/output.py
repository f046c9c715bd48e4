"""Where an export writes: found out before the work begins, and filled only when everything is verified."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploykit.errors import OutputError, UsageError, os_errors_as_output_errors

__all__ = ["check_writable", "is_folder", "output_path", "publish", "staging_dir"]


def output_path(default: Path, out: str | Path | None, suffixes: Sequence[str]) -> Path:
    """The file that an export writes.

    Args:
        default: where it goes if nothing is asked for; its name is also the file's in a folder.
        out: a file whose name ends in one of ``suffixes``, or a folder; None: ``default``.
        suffixes: such as ``.onnx``.

    Raises:
        UsageError: ``out`` is neither.
    """
    if out is None:
        return default
    if is_folder(out):
        return Path(out) / default.name
    if Path(out).suffix not in suffixes:
        raise UsageError(f"--out is a file that ends in {' or '.join(suffixes)}, or a folder; got {out}")
    return Path(out)


def is_folder(out: str | Path) -> bool:
    """Whether a folder is meant: one that is there, or a name that ends in a separator."""
    return Path(out).is_dir() or str(out).endswith(("/", os.sep))


def check_writable(out: Path) -> None:
    """Find out now, not after a minute of work, that the result cannot be written. Nothing is left of the trial.

    Raises:
        OutputError: it cannot.
    """
    with os_errors_as_output_errors(out), _made(out.parent):
        probe = out.with_name(f".{out.name}.{os.getpid()}.probe")
        probe.write_bytes(b"")
        probe.unlink()
    if out.is_dir():
        raise OutputError(f"cannot write {out}: it is a folder")


@contextlib.contextmanager
def staging_dir(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out``, so on the same file system: files are born there under their final names, and
    :func:`publish` moves them when they are verified. Folders above ``out`` that are new go again if it is not.
    """
    folder = out.with_name(f".{out.stem}.{os.getpid()}.partial")
    with os_errors_as_output_errors(out), _made(out.parent):
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path, companions: Sequence[Path]) -> None:
    """Move the files of ``folder`` beside ``out``: the weights before the graph that names them, the report last.

    ``companions`` that are not among them are of an older file and say nothing about this one: they are removed.
    """
    files = sorted(folder.iterdir(), key=lambda p: (p.suffix != ".data", p.suffix == ".json"))
    for file in files:
        file.replace(out.with_name(file.name))
    for companion in companions:
        if companion.name not in [file.name for file in files]:
            companion.unlink(missing_ok=True)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """A folder and those above it; of those that are made, the ones that are empty at the end are removed."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # it is not empty, or was never made
                path.rmdir()
