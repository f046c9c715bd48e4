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
    from deploykit.runtime.options import DrawOptions, PredictOptions
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.video import Video

RAW = ".dng"


def predict_flags() -> Flags[PredictOptions]:
    """Return the options that fill :class:`deploykit.runtime.options.PredictOptions`."""
    from deploykit.runtime.options import PredictOptions

    side = Flag("--tile", "tile", "restore: side of a tile in pixels (for a mosaic in cells of 2 x 2)", "N", int)
    groups = {
        "objects": (*threshold_flags(), *choice_flags()),
        "other tasks": (
            Flag("--top", "top", "classify: report the N best classes (default 5)", "N", int),
            side,
            Flag("--overlap", "overlap", "restore: overlap of tiles in pixels", "N", int),
            Flag("--every", "every", "videos, cameras: predict every Nth frame", "N", int),
            Flag("--batch", "batch", "images or tiles per run, for a network with a dynamic batch", "N", int),
            workers_flag(),
        ),
        "images": (max_pixels_flag(),),
        "live streams": (
            Flag("--reconnect", "reconnect", "open a stream that broke off again, at most N times in a row", "N", int),
        ),
        "limits": (time_limit_flag(),),
    }
    return Flags(PredictOptions, groups)


def draw_flags() -> Flags[DrawOptions]:
    """Return the options that fill :class:`deploykit.runtime.options.DrawOptions`."""
    from deploykit.runtime.options import DrawOptions

    flags = (
        Flag(
            "--line-width", "line_width", "width of boxes and limbs in pixels (default: by the image's size)", "N", int
        ),
        Flag("--no-labels", "labels", "write no names, classes or legends on images"),
        Flag("--no-conf", "conf", "write no scores on images"),
        Flag("--font", "font", "a font file for text on images (default: one with the class names)", "FILE"),
    )
    return Flags(DrawOptions, {"drawn images": flags})


def workers_flag() -> Flag:
    """Return the option for how many images are on their way at the same time."""
    text = "images at the same time (default auto: by cores, a thread each)"
    return Flag("--workers", "workers", text, "N", number_or_auto)


def number_or_auto(text: str) -> int | str:
    """Parse a number, or ``auto``."""
    if not (text == "auto" or text.lstrip("-").isdecimal()):
        raise argparse.ArgumentTypeError(f"a number or auto is expected, got {text!r}")
    return text if text == "auto" else int(text)


def time_limit_flag(default: str = "") -> Flag:
    """Return the option for the time of one call of the network."""
    text = f"end a call of the network after S seconds; ONNX Runtime only{default}"
    return Flag("--time-limit", "time_limit", text, "S", float)


def threshold_flags() -> tuple[Flag, ...]:
    """Return the options for the thresholds of detection."""
    return (
        Flag("--conf", "conf", "confidence threshold (0 to 1)", "X", float),
        Flag("--iou", "iou", "IoU threshold of NMS (0 to 1)", "X", float),
        Flag("--max-det", "max_det", "maximum number of detections per image", "N", int),
    )


def choice_flags() -> tuple[Flag, ...]:
    """Return the options for what NMS chooses among."""
    wanted = "keep objects of these classes alone, by name or number; the others take no place in --max-det"
    alike = "let objects of different classes suppress each other"
    return (
        Flag("--classes", "classes", wanted, "NAME", nargs="+", fills=tuple),
        Flag("--agnostic-nms", "agnostic", alike),
    )


def max_pixels_flag() -> Flag:
    """Return the option for the largest image."""
    return Flag("--max-pixels", "max_pixels", "refuse images whose header declares more pixels", "N", int)


def add_task_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options for files besides drawn images."""
    group = parser.add_argument_group("what is written")
    group.add_argument("--no-draw", action="store_true", help="write no drawn images and videos into --out")
    group.add_argument(
        "--maps",
        action="store_true",
        help="segment: write label maps too: NAME-labels.png, with a palette",
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
        "--dota": (args.dota is not None, spec.output.oriented, "a model that finds oriented boxes"),
        "--csv": (args.csv is not None, result.has_table, "a model whose results are objects, classes or features"),
        **{
            option: (
                given, spec.output.finds_objects and has_out,
                "--out DIR, the folder to write to" if spec.output.finds_objects else "a model that finds objects",
            )
            for option, given in (("--save-txt", args.save_txt), ("--labelme", args.labelme), ("--crops", args.crops))
        },
        "--save-conf": (args.save_conf, args.save_txt, "--save-txt"),
        "--no-draw": (args.no_draw, has_out and not result.own_suffix, "--out, and drawn results"),
        "--resume": (
            args.resume, (has_out or args.coco or args.csv or args.dota) and args.layout != "contest",
            "--out, --coco, --csv or --dota, and the usual layout",
        ),
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
            task = f"; this model's task is {spec.task}" if "a model that" in needed or "drawn" in needed else ""
            raise UsageError(f"{option} needs {needed}{task}")


def without_raw(source: Images | Video) -> Images | Video:
    """Return a folder's images without its RAW files, for a network that takes none. A RAW file that was named itself
    stays, and reading it is an error.

    Raises:
        ImageError: none is left.
    """
    from deploykit.runtime.raw.mosaic import is_raw
    from deploykit.runtime.sources.video import Video

    if isinstance(source, Video) or source.folder is None:
        return source
    left = tuple(item for item in source.items if isinstance(item, Path) and not is_raw(item))
    if not left:
        raise ImageError(
            f"{source.folder} holds only RAW files, but this model takes developed images: name the files, or give a "
            "pattern such as '*.dng', to have them developed"
        )
    return dataclasses.replace(source, items=left, names=())


def tell_passed_over(
    folder: Path | str | None, images: Sequence[object] | None = None, *, recursive: bool = False
) -> None:
    """Show a note on what a folder holds besides images; ``images`` are those that are taken (None: all there are)."""
    from deploykit.runtime.images.folders import list_images, passed_over
    from deploykit.runtime.sources.opening import kind_of

    if folder is None or kind_of(folder) != "folder":
        return
    rest = passed_over(Path(folder), list_images(Path(folder)) if images is None else images, recursive=recursive)
    if rest:
        note(f"passed over in {folder}: {rest}")


@dataclass(frozen=True)
class Files:
    """How to write results that are more than a drawn image."""

    maps: bool = False
    suffix: str | None = None
    contest: bool = False
    drawn: bool = True

    @staticmethod
    def of(args: argparse.Namespace) -> Files:
        """Return the choice of the command line."""
        suffix = args.save_as and f".{args.save_as.lower().removeprefix('.')}"
        return Files(args.maps, suffix, args.layout == "contest", not args.no_draw)

    @property
    def maps_alone(self) -> bool:
        """Whether label maps are written without the drawn images."""
        return self.maps and not self.drawn

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
