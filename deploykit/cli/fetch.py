"""``deploykit fetch``: download a released checkpoint from its authors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._display import quiet

if TYPE_CHECKING:
    from deploykit.models.checkpoint.reader import Checkpoint
    from deploykit.releases.fetch import Fetched

MOST_GIB = 1 << 20  # that --max-size may allow

EXAMPLES = (
    ("deploykit fetch --list", "what there is"),
    ("deploykit fetch yolov5n --out weights/yolov5n.pt", "one checkpoint"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", metavar="MODEL", nargs="?", help="a released checkpoint, see --list")
    parser.add_argument("--list", action="store_true", help="list the released checkpoints with a description")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the file to write (default: the released name)")
    parser.add_argument("--url", metavar="URL", help="a mirror to use instead of the authors' address")
    parser.add_argument("--sha256", metavar="HEX", help="the expected SHA-256; a file with another one is refused")
    parser.add_argument("--max-size", type=float, metavar="GIB", help="maximum size of a file in GiB (default 4)")
    parser.add_argument("--force", action="store_true", help="download even if the file exists, and replace it")


def run(args: argparse.Namespace) -> int:
    """Download a checkpoint, or continue a download, with a progress bar; inspect the file and report its source."""
    from deploykit.errors import MissingDependencyError, UsageError, import_extra

    if args.list:
        return _list()
    if args.name is None:
        raise UsageError("name a released checkpoint to fetch; deploykit fetch --list shows them")
    inspected: list[Checkpoint | MissingDependencyError] = []

    def look(path: Path) -> None:
        try:
            import_extra("torch", "export")  # not before there is a file, because it takes seconds
        except MissingDependencyError as e:
            inspected.append(e)
            return
        from deploykit.models.checkpoint.reader import read_checkpoint

        inspected.append(read_checkpoint(path))

    if args.max_size is not None and not 0 < args.max_size <= MOST_GIB:
        raise UsageError(f"--max-size must lie over 0 and up to {MOST_GIB:,} GiB, got {args.max_size:g}")
    got = _fetch(args, look)
    if got.already_there:
        look(got.path)
    found = inspected[0]
    if isinstance(found, MissingDependencyError):
        description = f"the content was not inspected: {found}"
    else:
        description = _describe(found, got.path)
    print(f"{got.path}: {got.size:,} bytes, SHA-256 {got.sha256}")
    if got.already_there:
        print("the file exists already and matches its record: nothing was downloaded (--force downloads it again)")
    print(f"source: {got.url} ({got.licence})")
    print(description)
    if got.checked == "nothing":
        print("the publisher gives no SHA-256: compare this one with that of a copy you trust, or pass --sha256")
    if got.note:
        print(f"note: {got.note}")
    return 0


def _fetch(args: argparse.Namespace, look: Callable[[Path], None]) -> Fetched:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from deploykit.releases.fetch import fetch

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=quiet() or not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"fetching {args.name}", total=None)
        return fetch(
            args.name,
            out=args.out,
            url=args.url,
            sha256=args.sha256,
            force=args.force,
            **({} if args.max_size is None else {"max_size": int(args.max_size * (1 << 30))}),
            on_bytes=lambda done, total: progress.update(task, completed=done, total=total),
            look=look,
        )


def _describe(checkpoint: Checkpoint, path: Path) -> str:
    from dataclasses import replace

    from deploykit.errors import CheckpointError
    from deploykit.models.registry import model_from_checkpoint

    tensors = f"read safely: {len(checkpoint.state_dict)} tensors"
    try:
        model = model_from_checkpoint(replace(checkpoint, path=path))
    except CheckpointError as e:
        return f"{tensors}; deploykit cannot build it: {e}"
    spec = model.spec
    parts = [f"{model.name}", spec.task, f"{len(spec.classes)} class{'es' if len(spec.classes) != 1 else ''}"]
    if spec.keypoints:
        parts.append(f"{len(spec.keypoints.names)} keypoints")
    return f"{tensors}, {', '.join(parts)}, {spec.input.size[0]} px"


def _list() -> int:
    from deploykit.releases.table import RELEASED

    names = [name for name in RELEASED if "@" not in name]

    def tags(family: str) -> list[str]:
        return sorted({name.partition("@")[2] for name in RELEASED if name.startswith(family) and "@" in name})

    yolov5, yolov6 = tags("yolov5"), tags("yolov6")
    width = max(map(len, names))
    for name in names:
        note = "" if RELEASED[name].built else "; deploykit does not build it"
        print(f"{name:<{width}}  {RELEASED[name].what}{note}")
    print(
        f"Older releases: YOLOv5 {' and '.join(yolov5)}, such as yolov5s@{yolov5[0]} (listed: v7.0); YOLOv6 "
        f"{', '.join(yolov6)}, such as yolov6n@{yolov6[0]} (listed: the newest); YOLOX 0.0.1, such as yolox-s@0.0.1 "
        "(listed: 0.1.1rc0)."
    )
    return 0
