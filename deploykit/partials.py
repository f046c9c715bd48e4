"""Partials: the hidden files and folders in which something is written before it is renamed to its place.

A hidden name ends in ``.partial`` (and the suffix of the place) and says which machine and process wrote it. The writer
holds a lock on it as long as it lives. So the next write into the folder can tell what a killed process left there, and
removes it: at once what this machine left and nobody holds, and after a week what another machine left on a shared
volume, or what lies where there are no locks. Only the user's own files with such names are removed. Ctrl-C may come
between any two steps, those that make or remove a partial as well; what one leaves there is removed when the process
ends.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["lock", "partial_file", "partial_folder"]

PARTIAL = re.compile(r"\..*\.([0-9a-f]{8})-[0-9]+-[0-9a-f]{8}\.partial(\.[^.]*)?", re.DOTALL)
MAX_STEM, MAX_SUFFIX = 64, 32  # bytes; a file system takes names of 255
ABANDONED = 7 * 24 * 3600.0  # seconds after which nobody writes to a partial any more, wherever its writer ran


@contextlib.contextmanager
def partial_file(place: Path) -> Iterator[Path]:
    """Create an empty file of a hidden name beside ``place``; it is removed at the end unless it was renamed.

    Raises:
        OSError: it cannot be created.
    """
    _remove_abandoned(place.parent)
    while True:
        with _removed_at_the_end(_hidden(place.parent, place.stem, place.suffix)) as partial:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            held = _is_held(descriptor, partial)
            if sys.platform == "win32" or not held:  # Windows cannot rename an open file
                os.close(descriptor)
            if not held:
                continue
            try:
                yield partial
            finally:
                if sys.platform != "win32":
                    os.close(descriptor)
            return


@contextlib.contextmanager
def partial_folder(place: Path, parent: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """Create a folder of a hidden name for ``place`` in ``parent``; it is removed at the end, with all that is in it.

    Raises:
        OSError: it cannot be created.
    """
    _remove_abandoned(parent)
    while True:
        with _removed_at_the_end(_hidden(parent, place.stem)) as partial:
            partial.mkdir(mode)
            descriptor = None if sys.platform == "win32" else os.open(partial, os.O_RDONLY)
            try:
                if descriptor is not None and not _is_held(descriptor, partial):
                    continue
                yield partial
                return
            finally:
                _remove(partial)  # while the lock is held
                if descriptor is not None:
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


_UNFINISHED: set[Path] = set()  # the hidden names that this process may have made and not removed


@contextlib.contextmanager
def _removed_at_the_end(partial: Path) -> Iterator[Path]:
    """Remove a file or folder of this process at the end of the block, or at that of the process."""
    _UNFINISHED.add(partial)
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(partial: Path) -> None:
    """Remove a file or folder unless that is done, or it is of the process from which this one was forked."""
    if partial in _UNFINISHED:
        with contextlib.suppress(OSError):
            shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
        _UNFINISHED.discard(partial)


@atexit.register
def _remove_unfinished() -> None:
    for partial in tuple(_UNFINISHED):
        _remove(partial)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_UNFINISHED.clear)  # those names are the parent's


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
