"""The output folder of ``predict``: which file each result is written to is planned before the first one is written.

No file is written twice, and no source, model or annotation file is written at all, whatever its path looks like: paths
are compared without links, without the case of letters, and by the file that they lead to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import unicodedata
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._display import note
from deploykit.cli._predict_files import Files
from deploykit.errors import OutputError, UsageError

if TYPE_CHECKING:
    from deploykit.runtime.arrays import Array
    from deploykit.runtime.images.sources import Images, Video
    from deploykit.runtime.images.video_writer import Mp4Writer
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult

__all__ = ["Folder", "KnownFiles", "Planned", "Target", "concerns_one_file", "planned", "refuse_known"]

WRITABLE = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEO = ".mp4"
SHOWN = 3  # names in a note
LONGEST_NAME = 255  # bytes of a file name on the usual file systems


@dataclass(frozen=True)
class Planned:
    """A source's name, and the name of its result's file: stem, suffix, and whether a label map comes with it."""

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


class Folder:
    """Writes drawn images, results' own files and videos into one folder.

    Args:
        folder: the folder.
        files: what is written for a result.
        sources: all that is predicted on.
        predictor: the model.
        known: the files that must not be written; takes in those that will be.

    Raises:
        UsageError: a source cannot become the file that was asked for.
    """

    def __init__(
        self,
        folder: Path,
        files: Files,
        sources: Sequence[Images | Video],
        predictor: Predictor[ImageResult],
        known: KnownFiles,
    ) -> None:
        self._files = files
        self._recorder: Mp4Writer | None = None
        wanted = list(_wanted(files, sources, predictor))
        self._targets = planned(folder / files.folder, wanted, known)
        renamed = [
            f"{each.source} -> {target.file}"
            for each, target in _in_order(wanted, self._targets)
            if target.file.name != f"{each.stem}{each.suffix}"
        ]
        if renamed and files.contest:
            raise UsageError(
                f"--layout contest would replace a file that is read here ({renamed[0]}): choose another --out"
            )
        if renamed:
            more = f" and {len(renamed) - SHOWN} more" if len(renamed) > SHOWN else ""
            note(f"results whose name a source or another result has are numbered: {', '.join(renamed[:SHOWN])}{more}")

    @contextlib.contextmanager
    def opened_for(self, source: Images | Video) -> Iterator[None]:
        """Let ``write`` take this source's results while the context lasts; the video file appears at its end."""
        from deploykit.runtime.images.sources import Video
        from deploykit.runtime.images.video_writer import Mp4Writer

        if not isinstance(source, Video):
            yield
            return
        with Mp4Writer(self._targets[source.name].popleft().file, source.fps) as self._recorder:
            yield
        self._recorder = None

    def draws(self, result: ImageResult) -> bool:
        """Whether the drawn image is the file that is written."""
        return result.own_suffix is None or self._recorder is not None

    def write(self, result: Any, drawn: Array | None) -> None:
        """Write one image, or append one frame."""
        from deploykit.atomic import write_atomic
        from deploykit.runtime.results.base import encode_image

        if self._recorder is not None:
            assert drawn is not None
            self._recorder.write(drawn)
            return
        target = self._next(result.name)
        if not self.draws(result):
            result.save(target.file)
            return
        assert drawn is not None
        write_atomic(target.file, encode_image(drawn, target.file), durable=False)
        if target.map is not None:
            result.save_map(target.map)

    def _next(self, source: str) -> Target:
        """Return the next target of a source's name; a contest counts its results, whatever their names are."""
        return self._targets["" if self._files.contest else source].popleft()


def _wanted(files: Files, sources: Sequence[Images | Video], predictor: Predictor[ImageResult]) -> Iterator[Planned]:
    """Yield what is to be written, in the order of the sources."""
    from deploykit.runtime.images.sources import Video
    from deploykit.runtime.raw.mosaic import is_raw
    from deploykit.runtime.results.dense import RestoredRaw

    count = 0
    for source in sources:
        if isinstance(source, Video):
            name = source.name.replace(" ", "-") if source.live else source.name
            yield Planned(source.name, Path(name).stem, VIDEO)
            continue
        for item in source.items:
            name = os.fspath(item)  # type: ignore[arg-type]  # the command line names files only
            mosaic = predictor.takes_raw and is_raw(name)
            own = RestoredRaw.own_suffix if mosaic else predictor.adapter.result_type.own_suffix
            suffix = files.suffix_of(own, name)
            if suffix is None:
                suffix = Path(name).suffix
                suffix = suffix if suffix.lower() in WRITABLE else ".jpg"
            contest = files.contest and own is not None
            yield Planned(
                "" if contest else name, f"denoise{count}" if contest else Path(name).stem, suffix,
                has_map=files.maps and own is None,
            )  # fmt: skip
            count += 1


def _in_order(wanted: Sequence[Planned], targets: dict[str, deque[Target]]) -> Iterator[tuple[Planned, Target]]:
    left = {name: iter(each) for name, each in targets.items()}
    return ((each, next(left[each.source])) for each in wanted)


def planned(folder: Path, wanted: Sequence[Planned], known: KnownFiles) -> dict[str, deque[Target]]:
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


def refuse_known(path: Path, option: str, known: KnownFiles) -> None:
    """Check the path of a file that an option names.

    Raises:
        UsageError: it is a folder, or a file that is read or written besides.
    """
    if path.is_dir():
        raise UsageError(f"{option} must be a file, but {path} is a folder")
    if path in known:
        raise UsageError(f"{option} {path} would replace a file that is read or written here: choose another name")


def concerns_one_file(error: OutputError) -> bool:
    """Return whether only this file cannot be written, because of its name or its size in pixels, and others can."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
    return type(error) is OutputError  # OpenCV did not encode it


def _taken(target: Target, known: KnownFiles) -> Target | None:
    """Return the target and add its files to ``known``; None if one of them is there."""
    if any(file in known for file in target.files):
        return None
    for file in target.files:
        known.add(file)
    return target


def _target(folder: Path, each: Planned, stem: str, number: str = "") -> Target:
    labels = "-labels.png"
    tail = f"{number}{labels if each.has_map else each.suffix}"
    stem = f"{_shortened(stem, LONGEST_NAME - len(tail))}{number}"
    return Target(folder / f"{stem}{each.suffix}", folder / f"{stem}{labels}" if each.has_map else None)


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
