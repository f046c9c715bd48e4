"""``deploykit bench``: measure how long a model takes, alone and end to end."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._bench_compare import compare_here, file_size
from deploykit.cli._bench_report import check_report, write_report
from deploykit.cli._compute import compute_flags, compute_of
from deploykit.cli._display import console, print_json, shown_progress
from deploykit.cli._loading import add_verify, loading_flags, loading_of
from deploykit.cli._model import add_model, model_of
from deploykit.cli._options import Flag, Flags
from deploykit.cli._predict_files import max_pixels_flag, tell_passed_over, threshold_flags, time_limit_flag
from deploykit.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from deploykit.runtime.bench.baseline import BaselineComparison
    from deploykit.runtime.bench.report import Benchmark, Part, Statistics
    from deploykit.runtime.options import ComputeKeywords, PredictOptions
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.results.base import ImageResult
    from deploykit.runtime.session import Session

COLUMNS = ("mean", "p50", "p90", "p99", "min", "max")
MEANINGS = {
    "network": "the call, arrays in and out",
    "copy in": "host to GPU, by GPU events",
    "compute": "on the GPU, by GPU events",
    "copy out": "GPU to host, by GPU events",
    "decode": "JPEG, PNG, ... to pixels",
    "letterbox": "resize, pad, normalise",
    "prepare": "canvas, normalise",
    "inference": "the network's call",
    "postprocess": "outputs to results, NMS if any",
    "rest": "Python between the stages",
    "end to end": "all stages",
}

EXAMPLES = (
    ("deploykit bench best.onnx", "the network alone"),
    ("deploykit bench best.onnx --source bus.jpg --threads 4", "end to end, from a file to objects"),
    ("deploykit bench best.onnx --json --samples > old.json", "a baseline: the time of every run"),
    ("deploykit bench best.onnx --baseline old.json", "slower than it? exit code 85"),
    ("deploykit bench best.onnx --report out.html", "distribution, stages, operators and memory as one page"),
    ("deploykit bench best.onnx --compare", "every precision beside it, every device and thread count, in turn"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser, "an exported model (.onnx, .trt), or a checkpoint (needs torch)", also=("--engine",))
    parser.add_argument(
        "--source",
        nargs="+",
        metavar="SOURCE",
        help="images and folders of images, used in turn (default: one synthetic 1080p frame)",
    )
    compute_flags().add(parser)
    parser.add_argument("--provider", dest="device", default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # its old name
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--duration",
        type=float,
        default=10.0,
        metavar="S",
        help="seconds to measure (default 10); with --compare for each variant",
    )
    length.add_argument("--runs", type=int, metavar="N", help="measure exactly N runs instead (--compare: rounds)")
    parser.add_argument(
        "--warmup", type=float, default=2.0, metavar="S", help="seconds to warm up before the measurement (default 2)"
    )
    parser.add_argument(
        "--compare",
        nargs="*",
        metavar="FILE",
        help="measure in turn: MODEL, these files, and exports of MODEL in other precisions in its folder, on every "
        "device and with one thread and the default; and recommend one",
    )
    parser.add_argument(
        "--baseline",
        metavar="FILE",
        help="compare with what --json --samples printed earlier on this machine; exit code 85 if slower",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=None,
        metavar="PERCENT",
        help="--baseline: how much slower is not slower yet (default 5)",
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write a page (HTML) with drawings of everything that was measured, and the operators of the network; "
        "it needs nothing else",
    )
    _flags().add(parser)
    loading_flags().add(parser)
    add_verify(parser)
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of a model that does not carry its own")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    parser.add_argument("--samples", action="store_true", help="with --json: include the time of every run")


def _flags() -> Flags[PredictOptions]:
    from deploykit.runtime.options import PredictOptions

    batch = Flag("--batch", "batch", "images per run (default: the model's own)", "N", int)
    limit = time_limit_flag(" (default with --duration: 60, or ten times the duration if that is longer)")
    return Flags(PredictOptions, {"prediction": (batch, limit, max_pixels_flag(), *threshold_flags())})


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    # Silence OpenCV's messages about a broken image: the error that follows says what matters.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from deploykit.runtime.bench.baseline import check_not_slower, read_baseline
    from deploykit.runtime.bench.benchmark import benchmark

    _check(args)
    file = Path(model_of(args)).expanduser()
    for name in args.source or ():
        tell_passed_over(name)
    max_pixels = _flags().fill(args).max_pixels
    if args.report is not None:
        check_report(args.report)
    if args.compare is not None:
        compare_here(args, file, lambda model, compute: _opened(args, model, compute), max_pixels)
        return 0
    kept = None if args.baseline is None else read_baseline(Path(args.baseline).expanduser())
    with shown_progress(threaded=False) as progress:
        report = benchmark(
            lambda: _opened(args, model_of(args), compute_of(args)),
            args.source,
            duration=args.duration,
            runs=args.runs,
            warmup=args.warmup,
            max_pixels=max_pixels,
            progress=progress,
        )
    comparison = None if kept is None else _compared(report, kept, args)
    size = file_size(file)
    if args.json:
        facts = {"file": str(file), "bytes": size, **report.to_dict(samples=args.samples)}
        print_json(facts if comparison is None else {**facts, "baseline": comparison.to_dict()})
    else:
        _print(report, file, size)
        for line in () if comparison is None else (*comparison.notes, *comparison.lines()):
            console().print(line, markup=False)
    if args.report is not None:
        write_report(
            args, report, list(_facts(report, file, size)), lambda session: _predictor(args, session), comparison
        )
    if comparison is not None:
        check_not_slower(comparison)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    if args.samples and not args.json:
        raise UsageError("--samples adds the time of every run to the JSON document: add --json")
    if args.compare is not None and args.baseline is not None:
        raise UsageError("--baseline is for one model: --compare runs all files in turn, which needs none")
    if args.tolerance is not None and args.baseline is None:
        raise UsageError("--tolerance is for --baseline FILE")
    if args.tolerance is not None and not 0 <= args.tolerance < 100:
        raise UsageError(f"--tolerance must be at least 0 and below 100 percent, got {args.tolerance:g}")


def _compared(report: Benchmark, kept: dict[str, Any], args: argparse.Namespace) -> BaselineComparison:
    from deploykit.runtime.bench.baseline import MARGIN, compare_with_baseline

    margin = MARGIN if args.tolerance is None else args.tolerance / 100
    return compare_with_baseline(report, kept, file=Path(args.baseline), margin=margin)


def _opened(args: argparse.Namespace, model: str, compute: ComputeKeywords) -> Predictor[ImageResult]:
    from deploykit.facade import open_session
    from deploykit.spec import ENGINE_SUFFIXES

    try:
        session = open_session(model, **compute, loading=loading_of(args), verify=args.verify)
    except DeviceError as e:
        if Path(model).suffix.lower() not in ENGINE_SUFFIXES:
            raise
        raise DeviceError(f"{e}; {_what_runs_here(Path(model).expanduser())}") from e
    return _predictor(args, session, model)


def _predictor(args: argparse.Namespace, session: Session, model: str = "") -> Predictor[ImageResult]:
    """Return a predictor of an open session, which is closed if there can be none."""
    from deploykit.runtime.model_spec import session_spec
    from deploykit.runtime.predict.predictor import Predictor
    from deploykit.runtime.spec_file import read_spec

    try:
        given, options = read_spec(args.spec), _flags().fill(args)
        if options.time_limit is not None:  # a file without a spec may be run to draft one
            session.limit_time(options.time_limit)
        return Predictor(session, given or session_spec(session, model or model_of(args)), options)
    except BaseException:
        session.close()
        raise


def _what_runs_here(engine: Path) -> str:
    """Return the command for the ONNX file that an engine was built from."""
    from deploykit.runtime.engine_record import find_onnx_source

    source = find_onnx_source(engine)
    if source is None:
        return "its ONNX file runs here: deploykit bench MODEL.onnx"
    return f"try deploykit bench {shlex.quote(str(source))}"


def _print(report: Benchmark, file: Path, size: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, text in _facts(report, file, size):
        facts.add_row(name, escape(text))
    out = console()
    out.print(facts)
    alone, whole = report.model_only, report.end_to_end
    _print_part(out, "model only", alone, {**alone.stages, "network": alone.total}, report.batch)
    out.print(f"{alone.images_per_second:.1f} images per second through the network alone", markup=False)
    _print_part(out, "end to end", whole, {**whole.stages, "end to end": whole.total}, report.batch)
    found = report.spec.output.finds_objects
    speed = f"{whole.images_per_second:.1f} images per second from image to {'objects' if found else 'result'}"
    out.print(f"{speed}; objects per image: {report.objects:.1f}" if found else speed, markup=False)
    if whole.total.unsure:
        names = ", ".join(whole.total.unsure)
        few = f"{_counted(report.runs, 'run')}, too few for {names}: the value lies between the two slowest runs"
        out.print(f"\n* {few}; measure for longer (--duration)", markup=False)


def _print_part(out: Console, title: str, part: Part, rows: dict[str, Statistics], batch: int) -> None:
    """Print one of the two tables below the sentence that says what it includes."""
    from rich.table import Table

    out.print(f"\n[bold]{title.upper()}[/bold] (ms per run of {_counted(batch, 'image')}): {part.includes}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ms")
    for name in COLUMNS:
        table.add_column(f"{name}*" if name in part.total.unsure else name, justify="right")
    table.add_column("")
    for name, times in rows.items():
        numbers = (f"{getattr(times, column):.2f}" for column in COLUMNS)
        table.add_row(name, *numbers, MEANINGS[name], style="bold" if times is part.total else None)
    out.print(table)


def _facts(report: Benchmark, file: Path, size: int) -> Iterator[tuple[str, str]]:
    """Yield what a reader must know to judge the numbers, one row per fact."""
    from deploykit.describe import preprocessing
    from deploykit.runtime.files import format_size

    network, machine, images = report.network, report.machine, report.images
    yield "file", f"{file}  {format_size(size)}, loaded in {network.load_seconds:.1f} s"
    yield "model", f"{network.model or 'unnamed'}, {network.precision} according to its spec"
    shapes = sorted(network.shapes, key=math.prod)
    yield "input", f"{', '.join(network.inputs)}; run with {_some([str(shape) for shape in shapes], 'shapes')}"
    yield "preprocessing", preprocessing(report.spec)
    own = "one per core" if network.threads is None else f"{network.threads}"
    why = f" ({network.threads_from or 'the default of the backend'})"
    threads = "" if report.memory.device is not None else f"{own} for the network{why}, "  # meaningless on a GPU
    yield "computes", f"{', '.join(network.providers)}; threads: {threads}{report.opencv_threads} for OpenCV"
    quota = "" if machine.core_limit is None else f" (limited to {machine.core_limit:g} by a quota)"
    cores = f"{machine.cores} of {machine.machine_cores} cores{quota}"
    memory = "" if machine.memory is None else f", {machine.memory / 1e9:.1f} GB of memory"
    load = "" if machine.load is None else f", load {machine.load:.1f} before the first run"
    yield "machine", f"{machine.processor}, {cores}{memory}{load}; {machine.system}"
    for gpu in machine.gpus:
        yield "GPU", f"{gpu.name}, driver {gpu.driver}"
    yield "versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())
    sizes = [f"{width}x{height}" for height, width in sorted(set(images.sizes), key=lambda s: s[0] * s[1])]
    count, encoded = _counted(len(images.data), "image"), format_size(sum(map(len, images.data)))
    sources = _some(list(images.sources), "sources")
    yield "images", f"{sources}: {count}, {_some(sizes, 'sizes')} (width x height), {encoded} encoded"
    warmup = f"{_counted(report.warmup_runs, 'run')} of warm-up in {report.warmup_seconds:.1f} s, not counted"
    yield (
        "runs",
        f"{warmup}; then {report.runs} measured in {report.seconds:.1f} s, each end to end and then the network alone",
    )
    yield "memory", _memory(report)
    for note in report.notes:
        yield "note", note


def _memory(report: Benchmark) -> str:
    from deploykit.runtime.files import format_size

    used = report.memory
    before, loaded, peak = (
        "?" if size is None else format_size(size) for size in (used.before, used.loaded, used.peak)
    )
    since = "over the life of the process" if used.peak_of_process else "until the end"
    device = "" if used.device is None else f"; on the GPU {format_size(used.device)}"
    return f"{before} before the model was loaded, {loaded} after, peak {peak} {since}{device}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _some(words: list[str], what: str) -> str:
    """Return all words, or the first and the last of more than three."""
    return ", ".join(words) if len(words) <= 3 else f"{len(words)} {what} from {words[0]} to {words[-1]}"
