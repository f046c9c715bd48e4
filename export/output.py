"""The output path of an export: checked before the work begins, written only after verification."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from deploykit.atomic import (
    alone_in,
    become_folder,
    check_replaceable,
    existing_folder,
    sync,
)
from deploykit.errors import UsageError, os_errors_as_output_errors
from deploykit.partials import partial_file, partial_folder

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


def check_writable(out: Path, beside: Sequence[Path] = ()) -> None:
    """Check that the result can be written, before the work begins; the file written for the check is removed.

    Args:
        out: the file.
        beside: the other files of the export.

    Raises:
        OutputError: one of them cannot be written, or is not a file that may be replaced.
    """
    with os_errors_as_output_errors(out):
        for path in (out, *beside):
            check_replaceable(path)
        with partial_file(existing_folder(out.parent) / out.name):
            pass


@contextlib.contextmanager
def staging_dir(out: Path) -> Iterator[Path]:
    """Create a temporary folder on the file system of ``out``: beside it, or in the first folder above that exists.

    Files are written there under their final names, and :func:`publish` moves them after verification.
    """
    with os_errors_as_output_errors(out), partial_folder(out, existing_folder(out.parent)) as folder:
        yield folder


def publish(folder: Path, out: Path, *, parts: Sequence[Path] = (), reports: Sequence[Path] = ()) -> None:
    """Move the files of ``folder`` beside ``out``, in an order in which no two files that differ ever lie together.

    A folder that does not exist yet appears with all of them. Else another export into the folder is waited for. First
    the old reports are removed, then the old ``out`` if it has parts or will have some. Then the parts are moved,
    ``out``, and the reports. An interruption leaves a file without a report, and never a report of another file. Old
    parts and reports without a successor are gone.

    Args:
        folder: the staging folder; it holds the files of the export and nothing else, and they are moved.
        out: the file.
        parts: the files that ``out`` needs, such as its external weights; each before what needs it.
        reports: the files that say something about ``out``, in the order in which they are moved.

    Raises:
        OutputError: something else than a file lies at one of the paths, or the files cannot be moved.
    """
    with os_errors_as_output_errors(out):
        new = {path.name for path in folder.iterdir()}
        for path in (out, *parts, *reports):
            check_replaceable(path)
        for name in new:
            sync(folder / name)
        if not out.parent.exists():
            left = become_folder(folder, out.parent)
            if left is None:
                return
            folder = left
        out.parent.mkdir(parents=True, exist_ok=True)
        with alone_in(out.parent):
            _move(folder, new, out, parts, reports)


def _move(folder: Path, new: Set[str], out: Path, parts: Sequence[Path], reports: Sequence[Path]) -> None:
    apart = any(path.name in new or path.exists() for path in parts)
    for old in (*reports, *([out] if apart else []), *(path for path in parts if path.name not in new)):
        old.unlink(missing_ok=True)
    sync(out.parent)  # the removals are on the disk before the first new file is
    for path in (*parts, out, *reports):
        if path.name in new:
            (folder / path.name).replace(path)
    sync(out.parent)
