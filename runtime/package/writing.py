"""Files and folders of a package: written whole, and never over others unless that is asked for."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from deploykit.atomic import become_folder, exchange, existing_folder, sync, write_atomic
from deploykit.errors import OutputError, os_errors_as_output_errors
from deploykit.partials import partial_folder
from deploykit.runtime.package.sums import SUMS, text_of_sums
from deploykit.runtime.verified import sha256

__all__ = ["Content", "write_file", "write_tree"]

Content = str | Path
"""The text of a file, or the file that is copied."""


def write_file(file: Path, text: str, *, replace: bool = False) -> None:
    """Write one file.

    Raises:
        OutputError: it exists and is not to be replaced, or cannot be written.
    """
    if file.exists() and not replace:
        raise OutputError(f"{file} exists: choose another path, or pass --force to replace it")
    write_atomic(file, text.encode())


def write_tree(folder: Path, files: Mapping[str, Content], *, replace: bool = False) -> list[Path]:
    """Write files below a folder; each of its entries appears whole, in the order of ``files``.

    An entry is a file directly in the folder, or a folder in it with all that is in that, and with the hashes of these
    files in ``SHA256SUMS``. What else the folder holds stays as it is.

    Args:
        folder: created if it does not exist.
        files: path below the folder, with ``/`` -> its content.
        replace: replace entries that exist, each as a whole.

    Returns:
        The entries.

    Raises:
        OutputError: an entry exists and is not to be replaced, is a link, or cannot be written.
    """
    entries = [folder / name for name in dict.fromkeys(PurePosixPath(path).parts[0] for path in files)]
    with os_errors_as_output_errors(folder):
        _check(entries, replace=replace)
        with partial_folder(folder / "package", existing_folder(folder)) as staging:
            for path, content in files.items():
                place = staging / path
                place.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, place)
                else:
                    place.write_bytes(content.encode())
                sync(place)
            for entry in entries:
                _write_sums(staging / entry.name)
            left: Path | None = staging
            if not folder.exists():
                left = become_folder(staging, folder)
            if left is not None:
                folder.mkdir(parents=True, exist_ok=True)
                for entry in entries:
                    _put(left / entry.name, entry, staging)
                sync(folder)
    return entries


def _put(new: Path, entry: Path, staging: Path) -> None:
    """Rename a new entry to its place; what stood there is left in the staging folder."""
    if entry.exists():
        if exchange(new, entry):
            return
        entry.rename(staging / f".{secrets.token_hex(4)}.old")  # two steps, where the system has no single one
    new.rename(entry)


def _write_sums(entry: Path) -> None:
    """List the hashes of the files of an entry that is a folder, in the order of their names."""
    if not entry.is_dir():
        return
    files = sorted(file.relative_to(entry).as_posix() for file in entry.rglob("*") if file.is_file())
    sums = entry / SUMS
    sums.write_bytes(text_of_sums({file: sha256(entry / file) for file in files}).encode())
    sync(sums)


def _check(entries: Sequence[Path], *, replace: bool) -> None:
    for entry in entries:
        if entry.is_symlink():
            raise OutputError(f"cannot write {entry}: it is a link; give the folder that it leads to, or remove it")
        if entry.exists() and not replace:
            raise OutputError(f"{entry} exists: choose another folder, or pass --force to replace it")
