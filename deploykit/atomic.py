"""Files and folders that appear whole: written under a hidden name beside their place, then renamed.

A hidden name ends in ``.partial`` (and the suffix of the place) and says which machine and process wrote it. The writer
holds a lock on it as long as it lives. So the next write into the folder can tell what a killed process left there, and
removes it: at once what this machine left and nobody holds, and after a week what another machine left on a shared
volume, or what lies where there are no locks. Only the user's own files with such names are removed. Work files lie in
the system's temporary folder in a folder of such a name.

What is not a regular file is never replaced: a device or a pipe is written into, and a link stays and its target is
replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from deploykit.errors import OutputError, os_errors_as_output_errors

if sys.platform != "win32":
    import fcntl

__all__ = [
    "alone_in",
    "become_folder",
    "check_folder_writable",
    "check_replaceable",
    "destination",
    "exchange",
    "existing_folder",
    "lock",
    "partial_file",
    "partial_folder",
    "sync",
    "temporary_folder",
    "write_atomic",
]

PARTIAL = re.compile(r"\..*\.([0-9a-f]{8})-[0-9]+-[0-9a-f]{8}\.partial(\.[^.]*)?", re.DOTALL)
MAX_STEM, MAX_SUFFIX = 64, 32  # bytes; a file system takes names of 255
ABANDONED = 7 * 24 * 3600.0  # seconds after which nobody writes to a partial any more, wherever its writer ran
PATIENCE = 30.0  # seconds for which a writer waits for another one that moves its files into the same folder
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux's renameat2
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
            partial.replace(place)
        if durable:
            sync(place.parent)


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
        OutputError: it is something else, a link included.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISLNK(mode):
        raise OutputError(f"cannot write {path}: it is a link to {path.readlink()}; give that path, or remove the link")
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {path}: it is {_kind(mode)}; choose another path")


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
def partial_file(place: Path) -> Iterator[Path]:
    """Create an empty file of a hidden name beside ``place``; it is removed at the end unless it was renamed.

    Raises:
        OSError: it cannot be created.
    """
    _remove_abandoned(place.parent)
    while True:
        partial = _hidden(place.parent, place.stem, place.suffix)
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if _is_held(descriptor, partial):
            break
        os.close(descriptor)
    if sys.platform == "win32":  # Windows cannot rename an open file
        os.close(descriptor)
    try:
        yield partial
    finally:
        if sys.platform != "win32":
            os.close(descriptor)
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def partial_folder(place: Path, parent: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Create a folder of a hidden name for ``place`` in ``parent``; it is removed at the end, with all that is in it.

    Raises:
        OSError: it cannot be created.
    """
    _remove_abandoned(parent)
    while True:
        partial = _hidden(parent, place.stem)
        partial.mkdir(mode)
        descriptor = None if sys.platform == "win32" else os.open(partial, os.O_RDONLY)
        if descriptor is None or _is_held(descriptor, partial):
            break
        os.close(descriptor)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


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


def _hidden(folder: Path, stem: str, suffix: str = "") -> Path:
    """Return a new hidden name; it keeps a usual suffix, by which libraries choose a format."""
    while len(os.fsencode(stem)) > MAX_STEM:
        stem = stem[:-1]
    suffix = suffix if len(os.fsencode(suffix)) <= MAX_SUFFIX else ""
    return folder / f".{stem}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.partial{suffix}"


@cache
def _machine() -> str:
    """Return a short name of the running kernel, the same in all its containers: they see each other's locks."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        name = platform.node()
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def lock(descriptor: int) -> bool | None:
    """Lock a file or folder for this process: False if another one holds it, None if there are no locks here."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_held(descriptor: int, partial: Path) -> bool:
    """Lock a new partial; False if a process that removes abandoned ones came first."""
    try:
        return lock(descriptor) is not False and os.path.samestat(os.fstat(descriptor), partial.stat())
    except FileNotFoundError:
        return False


_CLEANED: set[str] = set()  # the folders from which this process has removed abandoned partials


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left in a folder; once per process, because a large folder takes time to list."""
    name = str(folder.absolute())
    if name in _CLEANED:
        return
    _CLEANED.add(name)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if match := PARTIAL.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(Path(entry.path), match[1])


def _remove_if_abandoned(partial: Path, machine: str) -> None:
    about = partial.lstat()
    folder = stat.S_ISDIR(about.st_mode)
    own = sys.platform == "win32" or about.st_uid == os.geteuid()
    if not own or not (folder or stat.S_ISREG(about.st_mode)):
        return
    free: bool | None = None
    descriptor = None
    try:
        if machine == _machine() and sys.platform != "win32":
            descriptor = os.open(partial, (os.O_RDONLY if folder else os.O_RDWR) | os.O_NOFOLLOW)
            free = lock(descriptor)
        if free or (free is None and time.time() - _last_change(partial) > ABANDONED):
            shutil.rmtree(partial) if folder else partial.unlink()
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _last_change(partial: Path) -> float:
    """Return when a file, or anything in a folder, was last written, in seconds since 1970."""
    return max(path.lstat().st_mtime for path in (partial, *partial.rglob("*")))
