"""The output folder of ``predict``."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._display import note
from deploykit.cli._predict_files import Files
from deploykit.cli._predict_objects import ObjectFiles, ObjectWriter
from deploykit.cli._predict_plan import LABELS, KnownFiles, Planned, Planning, Target, planned, stem_of
from deploykit.errors import OutputError, UsageError

if TYPE_CHECKING:
    from deploykit.runtime.arrays import Array
    from deploykit.runtime.images.video_writer import Mp4Writer
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.video import Video

__all__ = ["Folder", "concerns_one_file"]

WRITABLE = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
VIDEO = ".mp4"
SHOWN = 3  # names in a note


class Folder:
    """Writes drawn images, results' own files, videos, and files about objects into one folder.

    Args:
        folder: the folder.
        files: what is written for a result.
        objects: what is written about the objects of a result.
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
        objects: ObjectFiles,
        sources: Sequence[Images | Video],
        predictor: Predictor[ImageResult],
        known: KnownFiles,
    ) -> None:
        self._files, self._every = files, predictor.options.every
        self._recorder: Mp4Writer | None = None
        wanted = list(_wanted(files, sources, predictor))
        self._targets = planned(folder / files.folder, wanted, known)
        videos = [Planned(each.source, each.stem, "") for each in wanted if each.suffix == VIDEO and files.maps]
        self._frame_maps = planned(folder, videos, known)
        self._objects = ObjectWriter(folder, objects, sources, known)
        renamed = [
            f"{each.source} -> {target.file}"
            for each, target in _in_order(wanted, self._targets)
            if target.file.name != f"{Path(each.stem).name}{each.suffix}"
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
        from deploykit.runtime.images.video_writer import Mp4Writer
        from deploykit.runtime.sources.video import Video

        if not isinstance(source, Video) or not self._files.drawn:
            yield
            return
        with Mp4Writer(self._targets[source.name].popleft().file, source.fps / self._every) as self._recorder:
            yield
        self._recorder = None

    def draws(self, result: ImageResult) -> bool:
        """Whether the drawn image is a file that is written."""
        return self._files.drawn and (result.own_suffix is None or self._recorder is not None)

    def write(self, result: Any, drawn: Array | None) -> list[Path]:
        """Write the files of one image, and return them, or append one frame.

        Raises:
            OutputError: a place is not writable or full, or a file cannot have this name or size.
        """
        from deploykit.atomic import write_atomic
        from deploykit.runtime.results.base import encode_image

        if result.frame is not None:
            if self._recorder is not None:
                assert drawn is not None
                self._recorder.write(drawn)
            return [*self._objects.write(result), *self._write_frame_map(result)]
        target = self._next(result.name)
        files = self._objects.write(result)
        if not self.draws(result):
            if result.own_suffix is None and not self._files.maps_alone:
                return files
            write = result.save if result.own_suffix else result.save_map
            write(target.file)
            return [*files, target.file]
        assert drawn is not None
        write_atomic(target.file, encode_image(drawn, target.file), durable=False)
        if target.map is not None:
            result.save_map(target.map)
        return [*files, *target.files]

    def files_of(self, source: str) -> list[Path]:
        """Return the files that are planned for the next image of this name."""
        target = self._targets[source][0]
        written = self._files.drawn or self._files.maps_alone
        return [*self._objects.files_of(source), *(target.files if written else ())]

    def pass_over(self, source: str) -> None:
        """Leave out the next image of this name."""
        self._objects.pass_over(source)
        self._targets[source].popleft()

    def _write_frame_map(self, result: Any) -> list[Path]:
        """Write the label map of a video's frame into the folder of the video."""
        if not self._files.maps:
            return []
        return [result.save_map(self._frame_maps[result.name][0].file / f"{result.frame:06d}{LABELS}")]

    def _next(self, source: str) -> Target:
        """Return the next target of a source's name; a contest counts its results, whatever their names are."""
        return self._targets["" if self._files.contest else source].popleft()


def _wanted(files: Files, sources: Sequence[Images | Video], predictor: Predictor[ImageResult]) -> Iterator[Planned]:
    """Yield what is to be written, in the order of the sources."""
    from deploykit.runtime.raw.mosaic import is_raw
    from deploykit.runtime.results.dense import RestoredRaw
    from deploykit.runtime.sources.video import Video

    count = 0
    for source in sources:
        if isinstance(source, Video):
            name = source.name.replace(" ", "-") if source.live else source.name
            yield Planned(source.name, Path(name).stem, VIDEO)
            continue
        for name in source.names:
            mosaic = predictor.takes_raw and is_raw(name)
            own = RestoredRaw.own_suffix if mosaic else predictor.adapter.result_type.own_suffix
            suffix = files.suffix_of(own, name)
            if suffix is None and files.maps_alone:
                suffix = LABELS
            if suffix is None:
                suffix = Path(name).suffix
                suffix = suffix if suffix.lower() in WRITABLE else ".jpg"
            contest = files.contest and own is not None
            yield Planned(
                "" if contest else name, f"denoise{count}" if contest else stem_of(name, source.root), suffix,
                has_map=files.maps and files.drawn and own is None,
            )  # fmt: skip
            count += 1


def _in_order(wanted: Sequence[Planned], targets: Planning) -> Iterator[tuple[Planned, Target]]:
    left = {name: iter(each) for name, each in targets.items()}
    return ((each, next(left[each.source])) for each in wanted)


def concerns_one_file(error: OutputError) -> bool:
    """Return whether only this file cannot be written, because of its name or its size in pixels, and others can."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
    return type(error) is OutputError  # OpenCV did not encode it
