"""``deploykit predict``: run a model on images, folders, videos or a camera."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._display import note, print_json, printable
from deploykit.cli._loading import add_verify, loading_flags, loading_of
from deploykit.cli._predict_coco import CocoFile
from deploykit.cli._predict_files import (
    Files,
    add_task_arguments,
    check_task_arguments,
    predict_flags,
    tell_passed_over,
    without_raw,
)
from deploykit.cli._predict_folder import Folder, KnownFiles, concerns_one_file, refuse_known
from deploykit.errors import DeployError, ImageError, MissingDependencyError, OutputError, UsageError

if TYPE_CHECKING:
    from deploykit.runtime.arrays import Array
    from deploykit.runtime.images.sources import Images, Video
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult

QUIT_KEYS = {ord("q"), 27}  # 27: Escape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--model", required=True, metavar="FILE", help="an .onnx file, or a checkpoint (needs torch)")
    parser.add_argument(
        "--source",
        required=True,
        nargs="+",
        metavar="SOURCE",
        help="images, folders of images, videos, or a camera number; RAW files for a model that restores mosaics",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write drawn images and videos into this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image, each on its own line")
    parser.add_argument("--coco", type=Path, metavar="FILE", help="write all detections as one COCO results file")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="with --coco: take category numbers (by name) and image ids (by file name) from these COCO annotations",
    )
    predict_flags().add(parser)
    add_task_arguments(parser)
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of a model that does not carry its own")
    parser.add_argument(
        "--preprocessing",
        default="default",
        metavar="NAME",
        help="for a checkpoint: legacy for the weights of YOLOX release 0.0.1",
    )
    loading_flags().add(parser)
    add_verify(parser)
    parser.add_argument("--show", action="store_true", help="show the drawn images in a window; q quits")


def run(args: argparse.Namespace) -> int:
    """Predict, write and report; return the exit code."""
    # Silence the messages of OpenCV and FFmpeg: the error that follows says what matters.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    from deploykit.facade import load
    from deploykit.runtime.images.sources import Video

    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UsageError(f"--out must be a folder, but {args.out} is a file")
    if args.show:
        _check_display()
    sources = _opened(args.source)
    options = vars(predict_flags().fill(args))
    ways = {"spec": args.spec, "preprocessing": args.preprocessing, "loading": loading_of(args), "verify": args.verify}
    with load(args.model, **ways, **options) as predictor:
        check_task_arguments(args, predictor)
        if not predictor.takes_raw:
            sources = [without_raw(source) for source in sources]
        for source in sources:
            if not isinstance(source, Video):
                tell_passed_over(source.folder, source.items)
        totals = [source.total for source in sources]
        total = sum(t for t in totals if t is not None) if None not in totals else None
        known = KnownFiles(_read_files(args, sources))
        coco = None
        if args.coco is not None:
            refuse_known(args.coco, "--coco", known)
            known.add(args.coco)
            coco = CocoFile(args.coco, predictor.spec, sources, args.annotations)
        folder = None if args.out is None else Folder(args.out, Files.of(args), sources, predictor, known)
        report = _Report(args, total, predictor.adapter.done, coco)
        for each in predictor.notes:
            note(each)
        with report.progress():
            for source in sources:
                if not _predict(predictor, source, args, folder, report):
                    break
    report.finish()
    return OutputError.exit_code if report.lost else ImageError.exit_code if report.skipped else 0


def _opened(words: list[str]) -> list[Images | Video]:
    """Open the sources; single images become one source, so that they can share a batch."""
    from deploykit.runtime.images.sources import Images, kind_of, open_source

    files = [Path(word) for word in words if kind_of(word) == "image"]
    for file in files:
        open_source(file)  # a missing file is an error before any prediction
    opened: list[Images | Video] = [Images(tuple(files))] if files else []
    # Only the opened model tells whether RAW files in a folder are wanted.
    return opened + [open_source(word, raw=True) for word in words if kind_of(word) != "image"]


def _read_files(args: argparse.Namespace, sources: list[Images | Video]) -> Iterator[Path]:
    """Yield the files that this run reads, which no result may replace."""
    from deploykit.runtime.images.sources import Video

    yield from (Path(name).expanduser() for name in (args.model, args.spec, args.annotations) if name is not None)
    for source in sources:
        if not isinstance(source, Video):
            yield from (item for item in source.items if isinstance(item, Path))
        elif not source.live:
            yield Path(source.name)


def _predict(
    predictor: Predictor[ImageResult],
    source: Images | Video,
    args: argparse.Namespace,
    folder: Folder | None,
    report: _Report,
) -> bool:
    """Run one source to its end; return False if the user closed the window."""
    skip = None if report.total == 1 else report.skip  # a single image that cannot be read is an error
    with folder.opened_for(source) if folder else contextlib.nullcontext():
        try:
            for result in predictor.stream(source, skip=skip):
                start = time.perf_counter()
                drawn = result.draw() if args.show or (folder and folder.draws(result)) else None
                if folder:
                    try:
                        folder.write(result, drawn)
                    except OutputError as e:
                        if skip is None or result.frame is not None or not concerns_one_file(e):
                            raise
                        report.lose(e)
                report.take(result, (time.perf_counter() - start) * 1e3 if folder or drawn is not None else 0.0)
                if args.show and drawn is not None and not _show(drawn, wait=result.frame is None):
                    return False
        except KeyboardInterrupt:
            if not source.live:  # a camera has no end of its own
                raise
    return True


class _Report:
    """The output: a progress bar on a terminal, else one line per image; a summary; JSON and COCO on request.

    With ``--json``, standard output carries only JSON lines; everything else goes to standard error.
    """

    def __init__(self, args: argparse.Namespace, total: int | None, done: str, coco: CocoFile | None) -> None:
        self.skipped = self.lost = 0
        self._done = done
        self._args = args
        self.total = total
        self._text = sys.stderr if args.json else sys.stdout
        self._bar = sys.stderr.isatty() and not (args.json and sys.stdout.isatty())
        self._advance: Any = None
        self._images = 0
        self._objects: Counter[str] = Counter()
        self._times: list[dict[str, float]] = []
        self._coco = coco

    @contextlib.contextmanager
    def progress(self) -> Iterator[None]:
        """Show the bar while the context lasts if standard error is a terminal."""
        if not self._bar:
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), redirect_stdout=False, transient=True) as bar:
            task = bar.add_task("predicting", total=self.total)
            self._advance = lambda: bar.advance(task)
            yield

    def say(self, line: str) -> None:
        """Print one line for people."""
        print(printable(line), file=self._text, flush=True)

    def skip(self, error: DeployError) -> None:
        """Report an image that cannot be read; the others continue, and the exit code is not 0."""
        self.skipped += 1
        print(f"deploykit: left out: {printable(str(error))}", file=sys.stderr, flush=True)

    def lose(self, error: OutputError) -> None:
        """Report a result whose file cannot be written, while others can; the exit code is not 0."""
        self.lost += 1
        print(f"deploykit: not written: {printable(str(error))}", file=sys.stderr, flush=True)

    def take(self, result: Any, drawing_ms: float) -> None:
        """Count one result, print it and collect it."""
        self._images += 1
        self._objects.update(result.counts())
        self._times.append({**result.timings, "draw and write": drawing_ms})
        if self._args.json:
            print_json(result.to_dict(), indent=None)
        if self._coco is not None:
            self._coco.add(result)
        if self._advance is not None:
            self._advance()
        else:
            frame = "" if result.frame is None else f" frame {result.frame}"
            self.say(f"{result.name}{frame}: {result.summary()}")

    def finish(self) -> None:
        """Write the COCO file and the summary."""
        if self._coco is not None:
            self._coco.write()
        from deploykit.runtime.results.detection import listed

        done = self._done or listed(self._objects)
        self.say(f"{self._images} image{'s' * (self._images != 1)}: {done}")
        if self.skipped:
            self.say(f"{self.skipped} left out, in whole or in part, because they could not be read")
        if self.lost:
            self.say(f"{self.lost} not written because their names or sizes do not allow it")
        if self._times:
            self.say(_timing_line(self._times))
        written = [str(place) for place in (self._args.out, self._args.coco) if place is not None]
        if written:
            self.say(f"written: {', '.join(written)}")


def _timing_line(times: list[dict[str, float]]) -> str:
    """Return the mean of each stage. The first image pays for memory and caches, so it counts only if it is alone."""
    counted, first = (times[1:], "without the first") if len(times) > 1 else (times, "the first, with its warm-up")
    means = {stage: sum(t[stage] for t in counted) / len(counted) for stage in counted[0]}
    drawing = means.pop("draw and write")
    stages = " + ".join(f"{stage} {ms:.1f}" for stage, ms in means.items())
    line = f"mean time per image ({first}): {stages} = {sum(means.values()):.1f} ms; inference is the network call"
    return f"{line}; drawing and writing ({drawing:.1f} ms) not included" if drawing > 0 else line


def _check_display() -> None:
    """Check for a display first: Qt ends the whole process without one."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError("--show needs a display, but neither DISPLAY nor WAYLAND_DISPLAY is set: use --out instead")


def _show(image: Array, *, wait: bool) -> bool:
    """Show one image, with ``wait`` until a key is pressed; return False if the user quits."""
    import cv2

    title = "deploykit"
    try:
        cv2.imshow(title, image)
        key = cv2.waitKey(1)
        while wait and key < 0 and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) > 0:
            key = cv2.waitKey(50)
    except cv2.error as e:
        raise MissingDependencyError(
            "--show needs OpenCV with window support, but this build (opencv-python-headless?) has none: "
            "pip install opencv-python, or use --out"
        ) from e
    return key not in QUIT_KEYS
