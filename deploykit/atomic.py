"""Files and folders that appear whole: written as a partial (``deploykit/partials.py``), then renamed.

What is not a regular file is never replaced: a device or a pipe is written into, and a link stays and its target is
replaced. A file that is mounted by itself is written into too, because the system replaces none. Work files lie in a
partial folder in the system's temporary folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import OutputError, os_errors_as_output_errors
from deploykit.partials import lock, partial_file, partial_folder

__all__ = [
    "alone_in",
    "become_file",
    "become_folder",
    "check_folder_writable",
    "check_replaceable",
    "destination",
    "exchange",
    "existing_folder",
    "sync",
    "temporary_folder",
    "write_atomic",
]

PATIENCE = 30.0  # seconds for which a writer waits for another one that moves its files into the same folder
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
LOG = logging.getLogger(__name__)
MOUNTS = Path("/proc/self/mountinfo")
OCTAL = re.compile(rb"\\([0-7]{3})")  # of bytes of a path there that would end it
KINDS = {
    stat.S_IFBLK: "a block device",
    stat.S_IFCHR: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` beside ``path``, then rename it: no reader ever sees a partial file.

    A device (not a block device) or a pipe is written into instead, for example ``/dev/stdout``. The folder of the file
    is created.

    Args:
        path: the file; if it is a link, its target is written and the link stays.
        data: the content.
        durable: wait until the data are on the disk, so that the file survives a power failure whole. That takes some
            milliseconds; False for what is made by the thousand and can be made again.

    Raises:
        OutputError: the path is not writable, is no file, or the disk is full; a file that existed is unchanged.
        BrokenPipeError: nobody reads the pipe any more.
    """
    with os_errors_as_output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        place = destination(path)
        if place is None:
            _write_into(path, data)
            return
        with partial_file(place) as partial:
            partial.write_bytes(data)
            if durable:
                sync(partial)
            become_file(partial, place)
        if durable:
            sync(place.parent)


def become_file(partial: Path, place: Path) -> None:
    """Rename a complete file to its place, where a file may lie.

    A file that is mounted by itself, as containers may have one, cannot be replaced, which the system says with EBUSY:
    then its content is, with a warning, because a reader may see a part of it.

    Raises:
        OSError: it cannot be renamed or written.
    """
    try:
        partial.replace(place)
    except OSError as e:
        if e.errno != errno.EBUSY or not place.is_file():
            raise
        LOG.warning(
            "%s is mounted by itself and is written in place: mount its folder, so that it appears whole", place
        )
        with partial.open("rb") as new, place.open("r+b") as old:
            shutil.copyfileobj(new, old)
            old.truncate()
        sync(place)


def destination(path: Path) -> Path | None:
    """Return the file that ``path`` means after all links; None: a device or a pipe, which is written into.

    Raises:
        OutputError: it is a folder, a block device or a socket. OSError: the system cannot tell.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None  # a new file, or a link to one
    if found is not None and not stat.S_ISREG(found.st_mode):
        if stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode):
            return None
        raise OutputError(f"cannot write {path}: it is {_kind(found.st_mode)}; choose another path")
    if found is not None and _standard_stream(path) is not None:
        return None
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_replaceable(path: Path) -> None:
    """Check that ``path`` is missing or a regular file, which an export with several files may replace.

    Raises:
        OutputError: it is something else, a link included, or it is mounted by itself.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise OutputError(f"cannot write {path}: it is a link to {path.readlink()}; give that path, or remove the link")
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {path}: it is {_kind(mode)}; choose another path")
    if _is_mounted(path):
        raise OutputError(
            f"cannot write {path}: it is mounted by itself, so that nothing can replace it; mount its folder"
        )


def _is_mounted(path: Path) -> bool:
    """Return whether a file is a mount point, as far as the system tells (Linux)."""
    try:
        mounts = MOUNTS.read_bytes().splitlines()
    except OSError:
        return False
    name = os.fsencode(os.path.realpath(path))
    return any(OCTAL.sub(lambda code: bytes([int(code[1], 8)]), line.split(b" ")[4]) == name for line in mounts)


def check_folder_writable(folder: Path) -> None:
    """Check before long work that files can be written into a folder; it may not exist yet, and is not created.

    Raises:
        OutputError: they cannot, or it is no folder.
    """
    with os_errors_as_output_errors(folder), partial_file(existing_folder(folder) / "probe"):
        pass


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the first one above it that exists."""
    return next((path for path in (folder, *folder.parents) if path.exists()), folder)


def _kind(mode: int) -> str:
    return KINDS.get(stat.S_IFMT(mode), "not a regular file")


def _standard_stream(path: Path) -> int | None:
    """Return the number of the standard stream that ``path`` is, such as ``/dev/stdout``; None: it is none."""
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), path.stat()):
                return number
    return None


def _write_into(path: Path, data: bytes) -> None:
    number = _standard_stream(path)
    if number is not None and sys.stdout is not None:
        sys.stdout.flush()  # what was printed comes first
    with open(path if number is None else number, "wb", closefd=number is None) as stream:
        stream.write(data)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Create a folder for work files in the system's temporary folder, which only the user can read.

    It is removed at the end; what a killed process left there is removed by the next one.

    Raises:
        OutputError: it cannot be created.
    """
    with contextlib.ExitStack() as stack:
        with os_errors_as_output_errors(Path(os.environ.get("TMPDIR", "the temporary folder"))):
            parent = Path(tempfile.gettempdir())
            folder = stack.enter_context(partial_folder(Path("deploykit"), parent, mode=0o700))
        yield folder


def become_folder(partial: Path, folder: Path) -> Path | None:
    """Rename a partial folder to one that does not exist, in one step together with the folders that are missing above.

    Args:
        partial: from :func:`partial_folder`, in the first folder above ``folder`` that exists.
        folder: the folder.

    Returns:
        None. The folder in which the content now lies, if the step is not possible, because another process has made
        one of the folders.

    Raises:
        OSError: the content cannot be moved.
    """
    first, *others = folder.relative_to(partial.parent).parts
    content = list(partial.iterdir())
    inner = partial.joinpath(*others)
    if others:
        if (partial / others[0]).exists():
            return partial
        inner.mkdir(parents=True)
        for entry in content:
            entry.rename(inner / entry.name)
        sync(inner)
    try:
        partial.rename(partial.parent / first)
    except OSError:
        return inner
    sync(partial.parent)
    return None


def exchange(one: Path, other: Path) -> bool:
    """Swap two existing files or folders in one step; return False where the system cannot do it (it is Linux's)."""
    if sys.platform != "linux":
        return False
    try:
        swap = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    return bool(swap(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep others who use this function out of a folder, while several files that belong together are moved into it.

    Where there are no locks, or another one needs longer than half a minute, the context begins all the same.
    """
    descriptor = None if sys.platform == "win32" else os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + PATIENCE
        while descriptor is not None and lock(descriptor) is False and time.monotonic() < end:
            time.sleep(0.005)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk.

    Raises:
        OSError: the data of a file did not get there.
    """
    if sys.platform == "win32":  # which has no folders to wait for, and files only if open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system can do it for folders
            raise
    finally:
        os.close(descriptor)
