"""The options and files of ``predict`` that depend on the model's task."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._display import note
from deploykit.cli._options import Flag, Flags
from deploykit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from deploykit.runtime.images.sources import Images, Video
    from deploykit.runtime.options import PredictOptions
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult

RAW = ".dng"


def predict_flags() -> Flags[PredictOptions]:
    """Return the options that fill :class:`deploykit.runtime.options.PredictOptions`."""
    from deploykit.runtime.options import PredictOptions

    side = Flag("--tile", "tile", "restore: side of a tile in pixels (for a mosaic in cells of 2 x 2)", "N", int)
    groups = {
        "objects": threshold_flags(),
        "other tasks": (
            Flag("--top", "top", "classify: report the N best classes (default 5)", "N", int),
            side,
            Flag("--overlap", "overlap", "restore: overlap of tiles in pixels", "N", int),
            Flag("--batch", "batch", "images or tiles per run, for a network with a dynamic batch", "N", int),
        ),
        "images": (max_pixels_flag(),),
        "limits": (time_limit_flag(),),
    }
    return Flags(PredictOptions, groups)


def time_limit_flag(default: str = "") -> Flag:
    """Return the option for the time of one call of the network."""
    text = f"end a call of the network that takes longer than S seconds; ONNX Runtime only{default}"
    return Flag("--time-limit", "time_limit", text, "S", float)


def threshold_flags() -> tuple[Flag, ...]:
    """Return the options for the thresholds of detection."""
    return (
        Flag("--conf", "conf", "keep scores above this (0 to 1)", "X", float),
        Flag("--iou", "iou", "suppress overlaps above this (0 to 1)", "X", float),
        Flag("--max-det", "max_det", "keep at most so many objects per image", "N", int),
    )


def max_pixels_flag() -> Flag:
    """Return the option for the largest image."""
    return Flag("--max-pixels", "max_pixels", "refuse images whose header declares more pixels", "N", int)


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options for files besides drawn images."""
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--maps", action="store_true", help="segment: write label maps too (NAME-labels.png with a palette)"
    )
    group.add_argument(
        "--save-as",
        metavar="SUFFIX",
        help="restore: png (the default for images; 16 bits for a mosaic), jpg, ...; dng (the default for mosaics)",
    )
    group.add_argument(
        "--layout",
        choices=("plain", "contest"),
        default="plain",
        help="mosaics: contest writes data/denoise0.dng, data/denoise1.dng, ... in source order",
    )


def check_task_arguments(args: argparse.Namespace, predictor: Predictor[ImageResult]) -> None:
    """Refuse options that do not fit the model's task.

    Raises:
        UsageError: an option of another task.
    """
    adapter, spec = predictor.adapter, predictor.spec
    result, has_out = adapter.result_type, args.out is not None
    needs = {
        "--coco": (args.coco is not None, spec.output.finds_objects, "a model that finds objects"),
        "--annotations": (args.annotations is not None, args.coco is not None, "--coco"),
        "--maps": (args.maps, result.has_map and has_out, "a model that segments, and --out"),
        "--save-as": (
            args.save_as is not None, bool(result.own_suffix) and has_out, "a model that restores, and --out"
        ),
        "--layout contest": (
            args.layout == "contest", predictor.takes_raw and has_out, "a model that restores mosaics, and --out"
        ),
    }  # fmt: skip
    for option, (given, possible, needed) in needs.items():
        if given and not possible:
            raise UsageError(f"{option} needs {needed}; this model's task is {spec.task}")


def without_raw(source: Images | Video) -> Images | Video:
    """Return a folder's images without its RAW files, for a network that takes none. A RAW file that was named itself
    stays, and reading it is an error.

    Raises:
        ImageError: none is left.
    """
    from deploykit.runtime.images.sources import Video
    from deploykit.runtime.raw.mosaic import is_raw

    if isinstance(source, Video) or source.folder is None:
        return source
    left = tuple(item for item in source.items if isinstance(item, Path) and not is_raw(item))
    if not left:
        raise ImageError(f"{source.folder} holds only RAW files, but this model takes developed images")
    return dataclasses.replace(source, items=left)


def tell_passed_over(folder: Path | str | None, images: Sequence[object] | None = None) -> None:
    """Show a note on what a folder holds besides images; ``images`` are those that are taken (None: all there are)."""
    from deploykit.runtime.images.sources import kind_of, list_images, passed_over

    if folder is None or kind_of(folder) != "folder":
        return
    rest = passed_over(Path(folder), list_images(Path(folder)) if images is None else images)
    if rest:
        note(f"passed over in {folder}: {rest}")


@dataclass(frozen=True)
class Files:
    """How to write results that are more than a drawn image."""

    maps: bool = False
    suffix: str | None = None
    contest: bool = False

    @staticmethod
    def of(args: argparse.Namespace) -> Files:
        """Return the choice of the command line."""
        suffix = args.save_as and f".{args.save_as.lower().removeprefix('.')}"
        return Files(args.maps, suffix, args.layout == "contest")

    @property
    def folder(self) -> str:
        """The subfolder of the output folder."""
        return "data" if self.contest else ""

    def suffix_of(self, own: str | None, name: str) -> str | None:
        """Return the suffix of the file that a result writes itself; None if the drawn image is written.

        Args:
            own: the suffix that results of this kind have (:attr:`deploykit.ImageResult.own_suffix`).
            name: the source's name in the message.

        Raises:
            UsageError: an image cannot become a mosaic.
        """
        if own is None:
            return None
        if self.suffix == RAW != own:
            raise UsageError(f"--save-as dng is for mosaics, but {name} is a developed image")
        return self.suffix or own
