"""``deploykit eval``: how good a model is on annotated images."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from deploykit.cli._comparison import print_comparison
from deploykit.cli._compute import compute_flags, compute_of
from deploykit.cli._display import aside, console, note, print_json, shown_progress
from deploykit.cli._label_maps import label_map_flags
from deploykit.cli._loading import add_verify, loading_flags, loading_of
from deploykit.cli._model import add_model, model_of
from deploykit.cli._options import Flag, Flags
from deploykit.cli._predict_files import max_pixels_flag, time_limit_flag, workers_flag
from deploykit.cli._predict_plan import KnownFiles, refuse_known
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from deploykit.progress import Progress
    from deploykit.runtime.evaluate.compare import Comparison, Interval
    from deploykit.runtime.evaluate.report import DetectionEvaluation, Evaluation
    from deploykit.runtime.options import EvalOptions

OVERLAPS = {"keypoints": {"IoU": "OKS"}, "oriented": {"an IoU": "a ProbIoU", " IoU": " ProbIoU"}}
"""Task -> words of :data:`MEANINGS` and what they are there."""

MEANINGS = {
    "AP": "average precision, mean over IoU thresholds from 0.50 to 0.95",
    "AP50": "... at an IoU of 0.50",
    "AP75": "... at an IoU of 0.75",
    "APs": "... of objects below 32 x 32 pixels",
    "APm": "... of 32 x 32 to 96 x 96",
    "APl": "... of larger ones",
    "AR1": "recall with the best detection per class and image",
    "AR10": "... with the best 10",
    "AR100": "... with the best 100",
    "AR": "recall with the best 20 detections per image",
    "AR50": "... at an OKS of 0.50",
    "AR75": "... at an OKS of 0.75",
    "ARs": "... of objects below 32 x 32 pixels",
    "ARm": "... of 32 x 32 to 96 x 96",
    "ARl": "... of larger ones",
    "top1": "share of the images whose class has the highest score",
    "top5": "... is among the five highest scores",
    "mIoU": "intersection over union (IoU) per class, mean over the classes",
    "mAcc": "share of correct pixels per class, mean over the classes",
    "aAcc": "share of correct pixels",
    "fwIoU": "intersection over union, weighted by the pixels of each class",
    "Dice": "Dice coefficient of class 1: twice the intersection over the sum of the areas",
    "PSNR": "peak signal-to-noise ratio in dB, mean over the images",
    "SSIM": "structural similarity, mean over the images",
}

EXAMPLES = (
    ("deploykit eval best.onnx --data val.json --images val/", "AP and AR by COCO's protocol"),
    ("deploykit eval int8.onnx --against fp32.onnx --data val.json --images val/", "what a precision costs"),
)


def eval_flags() -> Flags[EvalOptions]:
    """Return the options that fill :class:`deploykit.runtime.options.EvalOptions`."""
    from deploykit.runtime.options import EvalOptions, MetricsLibrary

    groups = {
        "what is evaluated": (
            Flag(
                "--task",
                "task",
                "the task to score: detect, instances, keypoints, segment, classify, restore (default: the spec's)",
                "TASK",
            ),
            Flag("--split", "split", "train, val or test of data.yaml or of a folder of splits (default val)", "NAME"),
            Flag("--limit", "limit", "evaluate only the first N available images", "N", int),
            Flag("--batch", "batch", "images per run (default: the model's own)", "N", int),
            workers_flag(),
            max_pixels_flag(),
            time_limit_flag(),
        ),
        "objects": (
            Flag("--allow-missing", "allow_missing", "skip listed images that are not in the folder"),
            Flag(
                "--img",
                "img",
                "canvas for a network with a dynamic shape: one side, or height and width",
                "N",
                int,
                nargs="+",
            ),
            Flag(
                "--rectangles",
                "rectangles",
                "pad each image to its own rectangle, as predict does, not to the whole canvas",
            ),
            Flag("--conf", "conf", "confidence threshold (default 0.001)", "X", float),
            Flag("--iou", "iou", "IoU threshold of NMS (default 0.65)", "X", float),
            Flag("--max-det", "max_det", "maximum number of detections per image (default 300)", "N", int),
            Flag(
                "--sigmas",
                "sigmas",
                "OKS constants of the keypoints, one for all or one each (default: the spec's)",
                "X",
                float,
                nargs="+",
                fills=tuple,
            ),
            Flag("--metrics", "metrics", "the library that computes the metrics", choices=get_args(MetricsLibrary)),
        ),
        "label maps": label_map_flags(),
    }
    return Flags(EvalOptions, groups)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser, "an exported model (.onnx, .trt), or a checkpoint (needs torch)")
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="COCO annotations (JSON), or the data.yaml of a YOLO data set; classify: a folder with one folder of "
        "images per class, or with such folders for train and val; segment: a folder of label maps; restore: a folder "
        "of target images",
    )
    parser.add_argument("--images", metavar="DIR", help="the folder with the images (not for classify and data.yaml)")
    eval_flags().add(parser)
    compute_flags().add(parser)
    loading_flags().add(parser)
    add_verify(parser)
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of a model that does not carry its own")
    parser.add_argument(
        "--preprocess",
        "--preprocessing",
        dest="preprocessing",
        default="default",
        metavar="NAME",
        help="upstream: prepare images as the original project's own evaluation does; legacy: for a checkpoint with "
        "weights of YOLOX 0.0.1, or of a classifier of ultralytics before 8.1 (default: the spec's)",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto, or torch: run an ONNX file with the data types of its graph, as a GPU runs fp16 and bf16",
    )
    parser.add_argument("--against", metavar="FILE", help="evaluate this model too and report the differences")
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="bootstrap samples for 95 %% intervals (default: 1000 with --against, else none)",
    )
    parser.add_argument(
        "--plots", metavar="DIR", help="draw precision-recall curves, F1 by score, and AP per class (needs matplotlib)"
    )
    parser.add_argument("--detections", metavar="OUT", help="write the scored detections as a COCO results file")
    parser.add_argument("--per-class", action="store_true", help="print the metrics of every class too")
    parser.add_argument("--engine", help=argparse.SUPPRESS)  # the former name of --metrics
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    # Silence OpenCV's messages about a broken image: the error that follows says what matters.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    from deploykit.runtime.evaluate.report import DetectionEvaluation
    from deploykit.runtime.pipeline.kept_memory import keep_freed_memory
    from deploykit.spec import json_safe

    keep_freed_memory()
    args.model, args.named_models = model_of(args), None
    _take_former_name(args)
    if len(getattr(args, "img", ())) > 2:
        raise UsageError(f"--img takes one side, or height and width, got {len(args.img)} numbers")
    if args.detections is not None:
        read = (args.model, args.data, args.spec, args.against)
        known = KnownFiles(Path(name).expanduser() for name in read if name is not None)
        refuse_known(Path(args.detections).expanduser(), "--detections", known)
    with shown_progress() as progress:
        found, comparison, intervals = _evaluated(args, progress)
    if isinstance(found, DetectionEvaluation):
        if args.detections is not None:
            _write_detections(found, args.detections)
        if args.plots is not None:
            _plot(args, found, comparison)
    for each in (*found.notes, *(comparison.notes if comparison else ())):
        note(each)
    if args.json:
        given = {"model": args.model, "data": args.data, "images": args.images}
        own = {"intervals": {name: list(ends) for name, ends in intervals.items()}} if intervals else {}
        print_json({**given, **found.to_dict(), **own, **(json_safe(comparison.to_dict()) if comparison else {})})
    else:
        _print(found, args, intervals, comparison)
    return 0


def _take_former_name(args: argparse.Namespace) -> None:
    """Let ``--engine hotcoco`` mean ``--metrics hotcoco``; any other value is not a library of metrics."""
    from deploykit.runtime.options import MetricsLibrary

    if args.engine is None:
        return
    if args.engine not in get_args(MetricsLibrary):
        raise UsageError(
            f"eval takes its model first, as in deploykit eval {args.engine} --data PATH; it has no --engine, and "
            "--metrics chooses the library of the metrics"
        )
    if getattr(args, "metrics", args.engine) != args.engine:
        raise UsageError(f"--engine {args.engine} contradicts --metrics {args.metrics}: keep --metrics")
    note("--engine is called --metrics now")
    args.metrics = args.engine


def _evaluated(
    args: argparse.Namespace, progress: Progress
) -> tuple[Evaluation, Comparison | None, dict[str, Interval]]:
    """Evaluate the model, with a comparison or its own intervals on request."""
    from deploykit.facade import evaluate, evaluate_against
    from deploykit.runtime.evaluate.compare import interval_of
    from deploykit.runtime.evaluate.report import DetectionEvaluation

    wanted = any(word is not None for word in (args.detections, args.plots, args.bootstrap))
    options = dict(vars(eval_flags().fill(args, keep_detections=wanted)))
    del options["upstream"]  # set by --preprocess
    options |= {name: getattr(args, name) for name in ("images", "spec", "backend", "preprocessing")}
    options |= {"loading": loading_of(args), "verify": args.verify, **compute_of(args)}
    if args.against is not None:
        comparison = evaluate_against(
            args.model, args.against, args.data, bootstrap=args.bootstrap, progress=progress, **options
        )
        return comparison.model, comparison, {}
    found = evaluate(args.model, args.data, progress=progress, **options)
    if args.bootstrap and isinstance(found, DetectionEvaluation):
        return found, None, interval_of(found, samples=args.bootstrap)
    return found, None, {}


def _plot(args: argparse.Namespace, found: DetectionEvaluation, comparison: Comparison | None) -> None:
    from deploykit.runtime.evaluate.compare import AccuracyComparison
    from deploykit.runtime.evaluate.plots import f1_curve, write_plots

    shown = {Path(args.model).name: found}
    if isinstance(comparison, AccuracyComparison):
        name = Path(args.against).name
        shown[name if name not in shown else args.against] = comparison.reference
    written = write_plots(Path(args.plots).expanduser(), shown)
    score, best = f1_curve(found).best
    aside(f"drawn: {', '.join(map(str, written))}; the best F1 is {best:.3f}, at a score threshold of {score:.3f}")


def _write_detections(found: DetectionEvaluation, place: str) -> None:
    import json

    from deploykit.atomic import write_atomic

    write_atomic(Path(place).expanduser(), json.dumps(found.detections.entries()).encode())


def _print(
    found: Evaluation, args: argparse.Namespace, intervals: dict[str, Interval], comparison: Comparison | None
) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deploykit.runtime.evaluate.compare import AccuracyComparison

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    images = "" if args.images is None else f", images in {args.images}"
    for name, text in (("model", args.model), ("data", f"{args.data}{images}"), *found.facts()):
        facts.add_row(name, escape(text))
    out = console()
    out.print(facts)
    beside = None if isinstance(comparison, AccuracyComparison) else comparison  # which has its own table
    out.print()
    out.print(_metrics(found, intervals, beside))
    details = found.details() if args.per_class else []
    if details:
        table = _table(*details[0])
        for row in details[1:]:
            table.add_row(*map(escape, row))
        out.print()
        out.print(table)
    if isinstance(comparison, AccuracyComparison):
        print_comparison(comparison, args.against, per_class=args.per_class)


def _metrics(found: Evaluation, intervals: dict[str, Interval], beside: Comparison | None) -> Table:
    """Build the table of the metrics and their meaning, with those of another model beside them."""
    from deploykit.runtime.evaluate.report import shown

    heads = ["95 % interval"] if intervals else ["against", "difference"] if beside else []
    table = _table(found.task, "", *heads, "")
    for name, value in found.metrics.items():
        meaning = MEANINGS.get(name, "")
        for word, own in OVERLAPS.get(found.task, {}).items():
            meaning = meaning.replace(word, own)
        more = [_between(intervals.get(name))] if intervals else []
        if beside is not None and name in beside.difference:
            more = [shown(beside.reference.metrics[name]), f"{beside.difference[name]:+.4f}"]
        table.add_row(name, shown(value), *more, meaning)
    return table


def _table(*heads: Any) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 or (not head and i == len(heads) - 1) else "right")
    return table


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
