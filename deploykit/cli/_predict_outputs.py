"""All that a run of ``predict`` writes: the output folder, the files about all images, and the record of the run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._model import model_of
from deploykit.cli._predict_coco import CocoFile
from deploykit.cli._predict_collected import Collected, CsvFile
from deploykit.cli._predict_dota import DotaFiles
from deploykit.cli._predict_files import Files
from deploykit.cli._predict_folder import Folder
from deploykit.cli._predict_objects import ObjectFiles
from deploykit.cli._predict_plan import KnownFiles, refuse_known
from deploykit.cli._predict_record import Record, described

if TYPE_CHECKING:
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.video import Video

__all__ = ["Outputs"]


class Outputs:
    """All that a run writes: the output folder, the files about all images, and the record of what is complete.

    Raises:
        UsageError: a file would replace another one, or the record of an earlier run does not fit.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        predictor: Predictor[ImageResult],
        sources: list[Images | Video],
        known: KnownFiles,
    ) -> None:
        order = {name: position for position, name in enumerate(dict.fromkeys(names_of(sources)))}
        self.done_before = 0
        self.collected: list[Collected] = []
        for option, path in (("--coco", args.coco), ("--csv", args.csv)):
            if path is not None:
                refuse_known(path, option, known)
                known.add(path)
        if args.coco is not None:
            self.collected.append(CocoFile(args.coco, predictor.spec, sources, order, args.annotations))
        if args.csv is not None:
            self.collected.append(CsvFile(args.csv, order))
        if args.dota is not None:
            self.collected.append(DotaFiles(args.dota, predictor.spec, sources, order, known))
        self.folder, places = None, [(each.path, False) for each in self.collected]
        if args.out is not None:
            self.folder = Folder(args.out, Files.of(args), ObjectFiles.of(args), sources, predictor, known)
            places.insert(0, (args.out, True))
        self._record = None
        if places:
            (place, is_folder), *_ = places
            self._record = Record(
                place, partial(described, args, model_of(args)), resume=args.resume, is_folder=is_folder
            )

    def left(self, sources: list[Images | Video]) -> list[Images | Video]:
        """Return what an earlier run has not finished."""
        assert self._record is not None
        rest = self._record.left(sources, self.folder, self.collected)
        self.done_before = sum(1 for _ in names_of(sources)) - sum(1 for _ in names_of(rest))
        return rest

    def add(self, result: ImageResult, files: list[Path] | None) -> None:
        """Take in a result whose files are written; None: one of them could not be."""
        adds = {each.key: each.entries(result) for each in self.collected}
        line = None
        if self._record is not None and result.frame is None and files is not None:
            line = self._record.line_of(result.name, files, adds)
        # A signal may come between any two statements: what takes time is done, and the record is last.
        for each in self.collected:
            each.add(result.name, adds[each.key])
        if self._record is not None and line is not None:
            self._record.add(line)

    def write(self) -> None:
        """Write the files about all images."""
        for each in self.collected:
            each.write()

    def stop(self) -> bool:
        """Write what there is, and the record; return whether the run can be resumed."""
        self.write()
        if self._record is None or not self._record.has_lines:
            return False
        self._record.save()
        return True


def names_of(sources: list[Images | Video]) -> Iterator[str]:
    """Yield the name of every image and video."""
    from deploykit.runtime.sources.video import Video

    for source in sources:
        if isinstance(source, Video):
            yield source.name
        else:
            yield from source.names
