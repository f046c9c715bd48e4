"""Which file each result of ``predict`` is written to: planned before the first one is written.

No file is written twice, and no source, model or annotation file is written at all, whatever its path looks like: paths
are compared without links, without the case of letters, and by the file that they lead to.
"""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from deploykit.errors import UsageError

__all__ = ["LABELS", "KnownFiles", "Planned", "Planning", "Target", "planned", "refuse_known", "stem_of"]

LABELS = "-labels.png"  # the end of a label map's name
LONGEST_NAME = 255  # bytes of a file name on the usual file systems


@dataclass(frozen=True)
class Planned:
    """A source's name, and the name of its result's file: stem (perhaps below sub-folders), suffix, and whether a label
    map comes with it."""

    source: str
    stem: str
    suffix: str
    has_map: bool = False


@dataclass(frozen=True)
class Target:
    """The files of one result: the drawn image, video or restored image, and the label map if it has one."""

    file: Path
    map: Path | None = None

    @property
    def files(self) -> list[Path]:
        """All of them."""
        return [self.file] if self.map is None else [self.file, self.map]


class KnownFiles:
    """Files that must not be written, or not again."""

    def __init__(self, files: Iterable[str | os.PathLike[str]] = ()) -> None:
        self._spellings: set[str] = set()
        self._inodes: set[tuple[int, int]] = set()
        for file in files:
            self.add(Path(file))

    def add(self, path: Path) -> None:
        """Add a file, which need not exist."""
        self._spellings.add(_spelling(path))
        if (inode := _inode(path)) is not None:
            self._inodes.add(inode)

    def __contains__(self, path: Path) -> bool:
        return _spelling(path) in self._spellings or _inode(path) in self._inodes


Planning = dict[str, deque[Target]]
"""The targets of each source, by its name, in the order of its results."""


def planned(folder: Path, wanted: Sequence[Planned], known: KnownFiles) -> Planning:
    """Return the targets of each source's name, one for each time that it is in ``wanted``.

    The first result of a name gets it; later ones get ``NAME-2``, ``NAME-3``, ... Names that a result has by itself go
    first, so that a numbered one never takes the name of another source's result. ``known`` takes all targets in.
    """
    targets: list[Target | None] = [_taken(_target(folder, each, each.stem), known) for each in wanted]
    counts: defaultdict[tuple[str, str], int] = defaultdict(lambda: 2)
    by_name: defaultdict[str, deque[Target]] = defaultdict(deque)
    for each, own in zip(wanted, targets, strict=True):
        target = own
        while target is None:
            number = counts[each.stem, each.suffix]
            counts[each.stem, each.suffix] += 1
            target = _taken(_target(folder, each, each.stem, f"-{number}"), known)
        by_name[each.source].append(target)
    return dict(by_name)


def stem_of(name: str, root: Path | None) -> str:
    """Return the name of an image's results without a suffix, below the sub-folders of ``root`` in which it lies."""
    below = Path(name).parent.relative_to(root) if root else Path()
    return str(below / Path(name).stem)


def refuse_known(path: Path, option: str, known: KnownFiles) -> None:
    """Check the path of a file that an option names.

    Raises:
        UsageError: it is a folder, or a file that is read or written besides.
    """
    from deploykit.runtime.files import is_folder

    if is_folder(path):
        raise UsageError(f"{option} must be a file, but {path} is a folder")
    if path in known:
        raise UsageError(f"{option} {path} would replace a file that is read or written here: choose another name")


def _taken(target: Target, known: KnownFiles) -> Target | None:
    """Return the target and add its files to ``known``; None if one of them is there."""
    if any(file in known for file in target.files):
        return None
    for file in target.files:
        known.add(file)
    return target


def _target(folder: Path, each: Planned, stem: str, number: str = "") -> Target:
    tail = f"{number}{LABELS if each.has_map else each.suffix}"
    folder /= Path(stem).parent
    stem = f"{_shortened(Path(stem).name, LONGEST_NAME - len(tail))}{number}"
    return Target(folder / f"{stem}{each.suffix}", folder / f"{stem}{LABELS}" if each.has_map else None)


def _shortened(text: str, most: int) -> str:
    """Return the longest beginning of at most ``most`` bytes."""
    while len(os.fsencode(text)) > most:
        text = text[:-1]
    return text


def _spelling(path: Path) -> str:
    return unicodedata.normalize("NFC", str(_resolved(path.parent) / path.name)).casefold()


@lru_cache(maxsize=1024)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: an impossible name
        return None
    return found.st_dev, found.st_ino
