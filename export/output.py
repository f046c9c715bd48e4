"""The output path of an export: checked before the work begins, written only after verification."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploykit.errors import OutputError, UsageError, os_errors_as_output_errors

__all__ = ["check_writable", "is_folder", "output_path", "publish", "staging_dir"]


def output_path(default: Path, out: str | Path | None, suffixes: Sequence[str]) -> Path:
    """Return the path of the file that an export writes.

    Args:
        default: the path without ``out``; if ``out`` is a folder, the file gets the name of this one.
        out: a file whose name ends in one of ``suffixes``, or a folder; None takes ``default``.
        suffixes: the suffixes of a file, such as ``.onnx``.

    Raises:
        UsageError: ``out`` is neither.
    """
    if out is None:
        return default
    if is_folder(out):
        return Path(out) / default.name
    if Path(out).suffix not in suffixes:
        raise UsageError(f"--out must be a file that ends in {' or '.join(suffixes)}, or a folder; got {out}")
    return Path(out)


def is_folder(out: str | Path) -> bool:
    """Whether ``out`` means a folder: it exists as one, or its name ends in a separator."""
    return Path(out).is_dir() or str(out).endswith(("/", os.sep))


def check_writable(out: Path) -> None:
    """Check that the result can be written, before the work begins; the file written for the check is removed.

    Raises:
        OutputError: it cannot be written.
    """
    with os_errors_as_output_errors(out), _parent_folders(out.parent):
        probe = out.with_name(f".{out.name}.{os.getpid()}.probe")
        probe.write_bytes(b"")
        probe.unlink()
    if out.is_dir():
        raise OutputError(f"cannot write {out}: it is a folder")


@contextlib.contextmanager
def staging_dir(out: Path) -> Iterator[Path]:
    """Create a temporary folder beside ``out``, on the same file system.

    Files are written there under their final names, and :func:`publish` moves them after verification. Folders above
    ``out`` that were created here are removed again if they stay empty.
    """
    folder = out.with_name(f".{out.stem}.{os.getpid()}.partial")
    with os_errors_as_output_errors(out), _parent_folders(out.parent):
        folder.mkdir(exist_ok=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path, companions: Sequence[Path]) -> None:
    """Move the files of ``folder`` beside ``out``: the weights before the graph that names them, the report last.

    ``companions`` that are not among these files belong to an older export, and are removed.
    """
    files = sorted(folder.iterdir(), key=lambda p: (p.suffix != ".data", p.suffix == ".json"))
    for file in files:
        file.replace(out.with_name(file.name))
    for companion in companions:
        if companion.name not in [file.name for file in files]:
            companion.unlink(missing_ok=True)


@contextlib.contextmanager
def _parent_folders(folder: Path) -> Iterator[None]:
    """Create a folder and those above it; remove the new ones that are empty at the end."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):  # it is not empty, or was not created
                path.rmdir()
