"""What ``predict`` does for classes, label maps and restored images: options, words, and files."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from deploykit.runtime.images.sources import Images, Video
    from deploykit.spec import ModelSpec

RESTORED = ".png"  # a restored image is written without loss
RAW = ".dng"
SHOWN = 6  # shares of a label map in a line
DONE = {"classify": "classified", "segment": "segmented", "restore": "restored", "features": "described"}


def add_dense_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of networks that find no boxes."""
    group = parser.add_argument_group("classification, segmentation, restoration")
    group.add_argument("--top", type=int, metavar="N", help="classify: so many classes of an image (default 5)")
    group.add_argument(
        "--maps", action="store_true", help="segment: write label maps too (NAME-labels.png, with a palette)"
    )
    group.add_argument(
        "--tile", type=int, metavar="N", help="restore: pixels a side of a tile, of a mosaic in cells of 2 x 2"
    )
    group.add_argument("--overlap", type=int, metavar="N", help="restore: how deep in its tile a kept pixel lies")
    group.add_argument("--batch", type=int, metavar="N", help="images, or tiles, in a run of a network that is free")
    group.add_argument(
        "--save-as",
        metavar="SUFFIX",
        help="restore: png (default; of a mosaic developed, 16 bits), jpg, ...; dng (default of a mosaic)",
    )
    group.add_argument(
        "--layout",
        choices=("plain", "contest"),
        default="plain",
        help="mosaics: contest writes data/denoise0.dng, data/denoise1.dng, ... in the order of the sources",
    )


def check_dense_arguments(args: argparse.Namespace, spec: ModelSpec, *, takes_raw: bool) -> None:
    """Refuse what does not go with the model's task, and note what is done.

    Raises:
        UsageError: an option of another task.
    """
    args.dense = DONE.get(spec.task)
    wrong = {
        "--coco": args.coco is not None and args.dense is not None,
        "--maps": args.maps and (spec.task != "segment" or args.out is None),
        "--save-as": args.save_as is not None and (spec.task != "restore" or args.out is None),
        "--layout contest": args.layout == "contest" and (not takes_raw or args.out is None),
    }
    for option, refused in wrong.items():
        if refused:
            needs = {
                "--coco": "a model that finds objects",
                "--maps": "a model that segments, and --out",
                "--save-as": "a model that restores, and --out",
            }.get(option, "a model that restores mosaics, and --out")
            raise UsageError(f"{option} needs {needs}; this model's task is {spec.task}")


def without_raw(source: Images | Video) -> Images | Video:
    """A folder's images without its RAW files, for a network that takes none; one that was named itself stays, and
    is refused when it is read.

    Raises:
        ImageError: none is left.
    """
    from deploykit.runtime.images.sources import Video
    from deploykit.runtime.raw.mosaic import is_raw

    if isinstance(source, Video) or source.folder is None:
        return source
    left = tuple(item for item in source.items if isinstance(item, Path) and not is_raw(item))
    if not left:
        raise ImageError(f"{source.folder} holds RAW files only, and this model takes developed images")
    return dataclasses.replace(source, items=left)


def said(result: Any) -> str:
    """An image's line; empty: it is one of objects."""
    from deploykit.runtime.results.dense import (
        Classification,
        DenseResult,
        Features,
        LabelMap,
        RestoredImage,
        RestoredRaw,
    )

    if not isinstance(result, DenseResult):
        return ""
    if isinstance(result, Classification):
        return ", ".join(f"{name} {score:.3f}" for name, score in result.named)
    if isinstance(result, LabelMap):
        shares = list(result.shares().items())
        rest = f", and {len(shares) - SHOWN} more" if len(shares) > SHOWN else ""
        return ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares[:SHOWN]) + rest
    if isinstance(result, Features):
        return f"{len(result.values)} features, of length {result.length:.4g}"
    assert isinstance(result, (RestoredImage, RestoredRaw))
    tiles = f", in {result.tiles} tiles" if result.tiles > 1 else ""
    if isinstance(result, RestoredRaw):
        raw = result.raw
        levels = f"{raw.letters}, black {raw.black[0]}, white {raw.white}"
        return f"mosaic of {result.size[1]}x{result.size[0]} ({levels}) restored{tiles}"
    height, width = result.pixels.shape[:2]
    return f"restored, {width}x{height}{tiles}"


@dataclass
class Files:
    """How results are written that are more than something drawn."""

    maps: bool = False
    suffix: str | None = None
    contest: bool = False
    _count: int = field(default=0, init=False)

    @staticmethod
    def of(args: argparse.Namespace) -> Files:
        """As the options say."""
        suffix = args.save_as and f".{args.save_as.lower().removeprefix('.')}"
        return Files(args.maps, suffix, args.layout == "contest")

    @property
    def folder(self) -> str:
        """Below the output folder."""
        return "data" if self.contest else ""

    def suffix_of(self, result: Any) -> str | None:
        """Of a file that the result writes itself; None: what is drawn is written.

        Raises:
            UsageError: an image cannot become a mosaic.
        """
        from deploykit.runtime.results.dense import RestoredImage, RestoredRaw

        if isinstance(result, RestoredRaw):
            return self.suffix or RAW
        if not isinstance(result, RestoredImage):
            return None
        if self.suffix == RAW:
            raise UsageError(f"--save-as dng is for mosaics, and {result.name} is a developed image")
        return self.suffix or RESTORED

    def name_of(self, name: str) -> str:
        """What a result's file is called."""
        if not self.contest:
            return name
        self._count += 1
        return f"denoise{self._count - 1}"
