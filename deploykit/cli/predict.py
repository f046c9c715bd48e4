"""``deploykit predict``: run a model on images, folders, videos or a camera."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._compute import compute_flags, compute_of
from deploykit.cli._display import aside, note, print_json, print_line, printable, quiet
from deploykit.cli._loading import add_verify, loading_flags, loading_of
from deploykit.cli._model import STDIN, add_model, add_sources, model_of, sources_of
from deploykit.cli._predict_files import (
    add_task_arguments,
    check_task_arguments,
    draw_flags,
    predict_flags,
    tell_passed_over,
    without_raw,
)
from deploykit.cli._predict_folder import Folder, concerns_one_file
from deploykit.cli._predict_objects import add_object_arguments
from deploykit.cli._predict_outputs import Outputs
from deploykit.cli._predict_plan import KnownFiles
from deploykit.errors import DeployError, ImageError, MissingDependencyError, OutputError, UsageError

if TYPE_CHECKING:
    from deploykit.runtime.arrays import Array
    from deploykit.runtime.options import DrawOptions
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult
    from deploykit.runtime.sources.frames import Images
    from deploykit.runtime.sources.video import Video

QUIT_KEYS = {ord("q"), 27}  # 27: Escape

EXAMPLES = (
    ("deploykit predict best.onnx bus.jpg --out results", "draw what is found"),
    ("deploykit predict best.onnx images/ film.mp4 --json > results.jsonl", "one JSON object per image and frame"),
    ("deploykit predict best.onnx images/ --coco results.json --annotations val.json", "a COCO results file"),
    ("deploykit predict best.onnx 0 --show", "a camera, in a window"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser, "an exported model (.onnx, .trt), or a checkpoint (needs torch)")
    add_sources(
        parser,
        "images, RAW files, folders, patterns ('*.jpg', '**'), lists of files (.txt), videos, addresses, live streams "
        "(rtsp://, rtmp://, .m3u8), a camera number, or - for standard input",
    )
    parser.add_argument("--recursive", action="store_true", help="take the images of sub-folders too, and keep these")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write drawn images and videos into this folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object per image, each on its own line")
    parser.add_argument("--coco", type=Path, metavar="FILE", help="write all detections as one COCO results file")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="with --coco: take category numbers (by name) and image ids (by file name) from these COCO annotations",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table with a row per object, class or image")
    parser.add_argument("--dota", type=Path, metavar="DIR", help="write oriented boxes for DOTA's evaluation")
    parser.add_argument("--resume", action="store_true", help="leave out images that an earlier run completed")
    predict_flags().add(parser)
    add_object_arguments(parser)
    compute_flags().add(parser)
    add_task_arguments(parser)
    draw_flags().add(parser)
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of a model that does not carry its own")
    parser.add_argument(
        "--preprocessing",
        default="default",
        metavar="NAME",
        help="for a checkpoint: legacy for weights of YOLOX 0.0.1, or of a classifier of ultralytics before 8.1",
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
    from deploykit.runtime.files import exists
    from deploykit.runtime.pipeline.kept_memory import keep_freed_memory
    from deploykit.runtime.sources.video import Video

    keep_freed_memory()
    if args.out is not None and exists(args.out) and not args.out.is_dir():
        raise UsageError(f"--out must be a folder, but {args.out} is a file")
    if args.show:
        _check_display()
    model, sources = model_of(args), _opened(sources_of(args), recursive=args.recursive)
    options = {**vars(predict_flags().fill(args)), **compute_of(args)}
    if options["workers"] is None and not _is_one(sources):
        options["workers"] = "auto"
    look = draw_flags().fill(args)
    ways = {"spec": args.spec, "preprocessing": args.preprocessing, "loading": loading_of(args), "verify": args.verify}
    with load(model, **ways, **options) as predictor:
        check_task_arguments(args, predictor)
        if predictor.options.every > 1 and not any(isinstance(source, Video) for source in sources):
            raise UsageError("--every is for videos and cameras, and there is none among the sources: leave it out")
        if not predictor.takes_raw:
            sources = [without_raw(source) for source in sources]
        for source in sources:
            if not isinstance(source, Video):
                tell_passed_over(source.folder, source.items, recursive=source.root is not None)
        known = KnownFiles(_read_files(args, sources))
        outputs = Outputs(args, predictor, sources, known)
        if args.resume:
            sources = outputs.left(sources)
        totals = [_frames_of(source, predictor.options.every) for source in sources]
        total = sum(t for t in totals if t is not None) if None not in totals else None
        report = _Report(args, total, predictor, outputs)
        for each in predictor.notes:
            note(each)
        try:
            with report.progress():
                for source in sources:
                    if not _predict(predictor, source, args, outputs.folder, look, report):
                        break
            report.finish()
        except KeyboardInterrupt as e:
            raise type(e)(report.stop()) from None
    return OutputError.exit_code if report.lost else ImageError.exit_code if report.skipped else 0


def _is_one(sources: list[Images | Video]) -> bool:
    """Return whether there is one image at most at a time: a single one, or a camera's."""
    return all(source.live for source in sources) or (len(sources) == 1 and sources[0].total == 1)


def _frames_of(source: Images | Video, every: int) -> int | None:
    """Return how many images a source has to predict, every Nth of a video; None: it does not say."""
    from deploykit.runtime.sources.video import Video

    return -(-source.total // every) if isinstance(source, Video) and source.total is not None else source.total


def _opened(words: list[str], *, recursive: bool) -> list[Images | Video]:
    """Open the sources; single images that follow each other become one source, so that they can share a batch."""
    from deploykit.runtime.sources.opening import joined, open_sources
    from deploykit.runtime.sources.standard_input import open_stdin

    if words.count(STDIN) > 1:
        raise UsageError(
            f"{STDIN} reads standard input, which can be one source only, got it {words.count(STDIN)} times"
        )
    return joined(
        source
        for word in words
        # Only the opened model tells whether RAW files in a folder are wanted.
        for source in (
            open_stdin(sys.stdin.buffer) if word == STDIN else open_sources(word, raw=True, recursive=recursive)
        )
    )


def _read_files(args: argparse.Namespace, sources: list[Images | Video]) -> Iterator[Path]:
    """Yield the files that this run reads, which no result may replace."""
    from deploykit.runtime.sources.video import Video

    yield from (Path(name).expanduser() for name in (model_of(args), args.spec, args.annotations) if name is not None)
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
    look: DrawOptions,
    report: _Report,
) -> bool:
    """Run one source to its end; return False if the user closed the window."""
    skip = None if report.total == 1 else report.skip  # a single image that cannot be read is an error
    with contextlib.ExitStack() as stack:
        if folder:
            stack.enter_context(folder.opened_for(source))
        try:
            for result in stack.enter_context(contextlib.closing(predictor.stream(source, skip=skip))):
                start = time.perf_counter()
                drawn = result.draw(**vars(look)) if args.show or (folder and folder.draws(result)) else None
                files: list[Path] | None = []
                if folder:
                    try:
                        files = folder.write(result, drawn)
                    except OutputError as e:
                        if skip is None or result.frame is not None or not concerns_one_file(e):
                            raise
                        report.lose(e)
                        files = None
                report.take(result, files, (time.perf_counter() - start) * 1e3 if folder or drawn is not None else 0.0)
                if args.show and drawn is not None and not _show(drawn, wait=result.frame is None):
                    return False
        except KeyboardInterrupt:
            if not source.live:  # a camera has no end of its own
                raise
        finally:
            report.tell_dropped(source)
    return True


class _Report:
    """The output: a progress bar on a terminal, else one line per image; a summary; JSON and COCO on request.

    With ``--json``, standard output carries only JSON lines; everything else goes to standard error.
    """

    def __init__(
        self, args: argparse.Namespace, total: int | None, predictor: Predictor[ImageResult], outputs: Outputs
    ) -> None:
        self.skipped = self.lost = 0
        self._began = time.perf_counter()
        self._done, self._workers = predictor.adapter.done, predictor.workers
        self._args = args
        self.total = total
        self._text = sys.stderr if args.json else sys.stdout
        self._bar = sys.stderr.isatty() and not quiet() and not (args.json and sys.stdout.isatty())
        self._advance: Any = None
        self._images = 0
        self._objects: Counter[str] = Counter()
        self._first: dict[str, float] = {}
        self._later: Counter[str] = Counter()  # sums, and not a list: a live stream has no end
        self._outputs = outputs

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
        if self._text is sys.stdout:
            print_line(printable(line))
        else:
            aside(printable(line))

    def skip(self, error: DeployError) -> None:
        """Report an image that cannot be read; the others continue, and the exit code is not 0."""
        self.skipped += 1
        print_line(f"deploykit: left out: {printable(str(error))}", sys.stderr)

    def lose(self, error: OutputError) -> None:
        """Report a result whose file cannot be written, while others can; the exit code is not 0."""
        self.lost += 1
        print_line(f"deploykit: not written: {printable(str(error))}", sys.stderr)

    def take(self, result: Any, files: list[Path] | None, drawing_ms: float) -> None:
        """Collect one result, whose files are written (None: not all), count it and print it."""
        self._outputs.add(result, files)
        self._images += 1
        self._objects.update(result.counts())
        times = {**result.timings, "draw and write": drawing_ms}
        if self._first:
            self._later.update(times)  # milliseconds add up as counts do
        else:
            self._first = times
        if self._args.json:
            print_json(result.to_dict(), indent=None)
        if self._advance is not None:
            self._advance()
        else:
            frame = "" if result.frame is None else f" frame {result.frame}"
            self.say(f"{result.name}{frame}: {result.summary()}")

    def tell_dropped(self, source: Images | Video) -> None:
        """Say how many frames of a live source came, and how many were left out because newer ones were there."""
        from deploykit.runtime.sources.live import Live

        if isinstance(source, Live):
            self.say(f"{source.name}: {source.received} frames came, {source.dropped} of them dropped for newer ones")

    def finish(self) -> None:
        """Write the files about all images, and the summary."""
        self._outputs.write()
        from deploykit.runtime.results.detection import listed

        done = self._done or listed(self._objects)
        if self._outputs.done_before:
            self.say(f"{self._outputs.done_before} complete since an earlier run")
        self.say(f"{self._images} image{'s' * (self._images != 1)}: {done}")
        if self.skipped:
            self.say(f"{self.skipped} left out, in whole or in part, because they could not be read")
        if self.lost:
            self.say(f"{self.lost} not written because their names or sizes do not allow it")
        if self._first:
            line = _timing_line(self._first, self._later, self._images - 1)
            passed = 1e3 * (time.perf_counter() - self._began) / self._images
            several = f"; {self._workers} images at the same time, in all {passed:.1f} ms for each"
            self.say(line + several * (self._workers > 1 and self._images > 1))
        places = (self._args.out, self._args.coco, self._args.csv, self._args.dota)
        written = [str(place) for place in places if place is not None]
        if written:
            self.say(f"written: {', '.join(written)}")

    def stop(self) -> str:
        """Write what is done of a run that is ended, and return the sentence on it."""
        goes_on = self._outputs.stop()
        before = self._outputs.done_before
        total = "" if self.total is None else f" of {self.total + before}"
        said = f"{self._images + before}{total} images are done"
        rest = "; the same command with --resume goes on" if goes_on else ""
        return f"{said}, and what is written is whole{rest}"


def _timing_line(first_ms: Mapping[str, float], later_ms: Mapping[str, float], later: int) -> str:
    """Return the mean of each stage. The first image pays for memory and caches, so it counts only if it is alone.

    Args:
        first_ms: the times of the first image.
        later_ms: the sums of the times of the ``later`` other images.
    """
    first = "without the first" if later else "the first, with its warm-up"
    means = {stage: ms / later for stage, ms in later_ms.items()} if later else dict(first_ms)
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
