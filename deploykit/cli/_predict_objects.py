"""The files about the objects of each image that ``predict`` writes: YOLO labels, LabelMe documents, and crops."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._predict_plan import KnownFiles, Planned, Planning, planned, stem_of
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.runtime.results.detection import Result
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.video import Video

__all__ = ["ObjectFiles", "ObjectWriter", "add_object_arguments", "folder_name"]

CROP = "-000000.jpg"  # room for the number in the name of a crop
NOT_IN_NAMES = '/\\:*?"<>|'  # characters that a file system, or another one, does not take


def add_object_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("files about objects, in --out")
    group.add_argument(
        "--save-txt", action="store_true", help="write YOLO label files: labels/NAME.txt with a line per object"
    )
    group.add_argument("--save-conf", action="store_true", help="with --save-txt: end each line with the score")
    group.add_argument("--labelme", action="store_true", help="write LabelMe documents: labelme/NAME.json")
    group.add_argument("--crops", action="store_true", help="write each object as an image: crops/CLASS/NAME-1.jpg")


@dataclass(frozen=True)
class ObjectFiles:
    """Which files are written about the objects of an image; ``scores``: with scores in the label files."""

    labels: bool = False
    scores: bool = False
    labelme: bool = False
    crops: bool = False

    @staticmethod
    def of(args: argparse.Namespace) -> ObjectFiles:
        """Return the choice of the command line."""
        return ObjectFiles(args.save_txt, args.save_conf, args.labelme, args.crops)


class ObjectWriter:
    """Writes the files about the objects of each image; a video's frames get a folder of its name.

    Args:
        folder: the output folder; the files lie in its folders ``labels``, ``labelme`` and ``crops``.
        wanted: which files are written.
        sources: all that is predicted on.
        known: the files that must not be written; takes in those that will be.

    Raises:
        UsageError: LabelMe documents of a video.
    """

    def __init__(self, folder: Path, wanted: ObjectFiles, sources: Sequence[Images | Video], known: KnownFiles) -> None:
        from deploykit.runtime.sources.video import Video

        self._wanted, self._folder = wanted, folder
        videos = [source.name for source in sources if isinstance(source, Video)]
        stems = [
            (name, stem_of(name, each.root)) for each in sources if not isinstance(each, Video) for name in each.names
        ]
        if wanted.labelme and videos:
            raise UsageError(f"--labelme is for images, but {videos[0]} is a video: leave it out")
        kinds = {"labels": (wanted.labels, ".txt"), "labelme": (wanted.labelme, ".json"), "crops": (wanted.crops, CROP)}
        self._plans: dict[str, Planning] = {
            kind: planned(
                folder / kind,
                [
                    *(Planned(name, Path(name).stem, "") for name in videos),
                    *(Planned(name, stem, suffix) for name, stem in stems),
                ],
                known,
            )
            for kind, (given, suffix) in kinds.items()
            if given
        }

    def files_of(self, source: str) -> list[Path]:
        """Return the files that the next result of this source gets; crops, whose number is not known, are left out."""
        return [plan[source][0].file for kind, plan in self._plans.items() if kind != "crops"]

    def pass_over(self, source: str) -> None:
        """Leave out the next result of this source."""
        for plan in self._plans.values():
            plan[source].popleft()

    def write(self, result: Result) -> list[Path]:
        """Write the files about one image, and return them.

        Raises:
            OutputError: a place is not writable or full.
        """
        from deploykit.atomic import write_atomic

        places = {kind: self._place(plan, result) for kind, plan in self._plans.items()}
        written = []
        if "labels" in places:
            file = places["labels"].with_name(f"{places['labels'].name}.txt")
            write_atomic(file, result.to_yolo(score=self._wanted.scores).encode(), durable=False)
            written.append(file)
        if "labelme" in places:
            file = places["labelme"].with_name(f"{places['labelme'].name}.json")
            document = result.to_labelme(_path_from(result.name, file.parent))
            write_atomic(file, json.dumps(document, indent=1).encode(), durable=False)
            written.append(file)
        if "crops" in places:
            written += self._write_crops(result, places["crops"])
        return written

    def _place(self, plan: Planning, result: Result) -> Path:
        """Return the path of a result's file without its suffix."""
        if result.frame is not None:
            return plan[result.name][0].file / f"{result.frame:06d}"
        file = plan[result.name].popleft().file
        return file.with_name(file.name.removesuffix(CROP if file.name.endswith(CROP) else file.suffix))

    def _write_crops(self, result: Result, place: Path) -> list[Path]:
        from deploykit.atomic import write_atomic
        from deploykit.runtime.results.base import encode_image

        root = self._folder / "crops"
        own, written = place.relative_to(root), []
        for number, (found, crop) in enumerate(zip(result, result.crops(), strict=True), 1):
            file = root / folder_name(found.name, found.label) / own.with_name(f"{own.name}-{number}.jpg")
            write_atomic(file, encode_image(crop, file), durable=False)
            written.append(file)
        return written


def folder_name(name: str, label: int) -> str:
    """Return a class name as the name of a folder; the label, if nothing of it can be one."""
    plain = "".join("_" if c in NOT_IN_NAMES or not c.isprintable() else c for c in name).strip(" .")
    return plain or str(label)


def _path_from(image: str, folder: Path) -> str:
    """Return the path of an image file from a folder."""
    with contextlib.suppress(ValueError):  # another drive of Windows
        return Path(os.path.relpath(Path(image).resolve(), folder.resolve())).as_posix()
    return Path(image).resolve().as_posix()
