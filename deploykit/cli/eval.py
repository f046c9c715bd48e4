"""``deploykit eval``: how good a model is on annotated images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deploykit.cli._comparison import print_comparison
from deploykit.cli._dense import DENSE, run_dense, task_of
from deploykit.cli._display import console, print_json, shown_progress
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from deploykit.runtime.evaluate.compare import AccuracyComparison, Interval
    from deploykit.runtime.evaluate.report import Evaluation

MEANINGS = {
    "AP": "mean of the precision, over overlaps of 0.50 to 0.95",
    "AP50": "... at an overlap of 0.50",
    "AP75": "... at an overlap of 0.75",
    "APs": "... of objects below 32 x 32 pixels",
    "APm": "... of 32 x 32 to 96 x 96",
    "APl": "... of larger ones",
    "AR1": "share of the objects found, by the best detection of a class in an image",
    "AR10": "... by its best 10",
    "AR100": "... by its best 100",
    "AR": "share of the objects found, by the best 20 an image",
    "AR50": "... at a similarity of 0.50",
    "AR75": "... at a similarity of 0.75",
    "ARs": "... of objects below 32 x 32 pixels",
    "ARm": "... of 32 x 32 to 96 x 96",
    "ARl": "... of larger ones",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--model", required=True, metavar="FILE", help="an exported model (.onnx, .trt), or a checkpoint (needs torch)"
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="annotations in COCO's JSON format; classify: a folder of images for each class; segment: a folder of "
        "label maps; restore: of targets",
    )
    parser.add_argument("--images", metavar="DIR", help="the folder with the images (not for classify)")
    parser.add_argument(
        "--task",
        choices=("detect", "instances", "keypoints", "segment", "classify", "restore"),
        help="what is scored (default: the spec's task)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images that are there")
    parser.add_argument("--allow-missing", action="store_true", help="leave out listed images that are not there")
    parser.add_argument("--batch", type=int, metavar="N", help="images a run (default: the model's own)")
    parser.add_argument(
        "--img", type=int, nargs="+", metavar="N", help="canvas of a dynamic shape: one side, or height and width"
    )
    parser.add_argument(
        "--rectangles", action="store_true", help="each image's own rectangle, as predict does, not the whole canvas"
    )
    parser.add_argument("--conf", type=float, metavar="X", help="keep scores above this (default 0.001)")
    parser.add_argument("--iou", type=float, metavar="X", help="suppress overlaps above this (default 0.65)")
    parser.add_argument("--max-det", type=int, metavar="N", help="at most so many objects an image (default 300)")
    parser.add_argument(
        "--engine", choices=("hotcoco", "pycocotools"), default="hotcoco", help="the library of the metrics"
    )
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of a model that does not carry its own")
    parser.add_argument(
        "--preprocess",
        "--preprocessing",
        dest="preprocessing",
        default="default",
        metavar="NAME",
        help="upstream: images as the original project's own evaluation prepares them; legacy: of a checkpoint with "
        "weights of YOLOX's release 0.0.1 (default: the spec's)",
    )
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="auto, or torch: an ONNX file by the types of its graph, as fp16 and bf16 are on a GPU",
    )
    parser.add_argument("--against", metavar="FILE", help="evaluate this model too, and tell the differences to it")
    parser.add_argument(
        "--bootstrap",
        type=int,
        metavar="N",
        help="draws of images for 95 %% intervals (default 1000 with --against, else none)",
    )
    parser.add_argument(
        "--plots", metavar="DIR", help="draw precision over recall, F1 over the score, and the classes' AP (matplotlib)"
    )
    parser.add_argument("--detections", metavar="OUT", help="write what was scored as a COCO results file")
    parser.add_argument("--per-class", action="store_true", help="print every class, not only the totals")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print."""
    # OpenCV's own chatter about a broken image; what matters of it is said by the error that follows.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    if args.task in DENSE or (args.task is None and task_of(args) in DENSE):
        return run_dense(args)
    if args.images is None:
        raise UsageError("--images is missing: the folder with the images that the annotations list")
    if args.img is not None and len(args.img) > 2:
        raise UsageError(f"--img takes one side, or height and width, got {len(args.img)} numbers")
    with shown_progress() as progress:
        progress.step("loading")

        def tell(done: int, total: int) -> None:
            if done == 1:
                progress.step("evaluating")
            progress.share(f"evaluating, {done} of {total} images", done / total)
            if done == total:
                progress.step("scoring")

        options: dict[str, Any] = {
            "images": args.images,
            "task": args.task,
            "conf": args.conf,
            "iou": args.iou,
            "max_det": args.max_det,
            "limit": args.limit,
            "batch": args.batch,
            "img": args.img,
            "rectangles": args.rectangles,
            "allow_missing": args.allow_missing,
            "engine": args.engine,
            "spec": args.spec,
            "backend": args.backend,
            "preprocessing": args.preprocessing,
            "on_progress": tell,
        }
        found, comparison, intervals = _evaluated(args, options)
    if args.detections is not None:
        _write_detections(found, args.detections)
    if args.plots is not None:
        _plot(args, found, comparison)
    for note in (*found.notes, *(comparison.notes if comparison else ())):
        print(f"deploykit: note: {note}", file=sys.stderr)
    if args.json:
        given = {"model": args.model, "data": args.data, "images": args.images}
        own = {"intervals": {name: list(ends) for name, ends in intervals.items()}} if intervals else {}
        print_json({**given, **found.to_dict(), **own, **(comparison.to_dict() if comparison else {})})
    else:
        _print(found, args, intervals)
        if comparison is not None:
            print_comparison(comparison, args.against, per_class=args.per_class)
    return 0


def _evaluated(
    args: argparse.Namespace, options: dict[str, Any]
) -> tuple[Evaluation, AccuracyComparison | None, dict[str, Interval]]:
    """The model's evaluation, with its comparison or its own intervals where they are asked for."""
    from deploykit.facade import evaluate, evaluate_against
    from deploykit.runtime.evaluate.compare import interval_of

    if args.against is not None:
        draws = 1000 if args.bootstrap is None else args.bootstrap
        comparison = evaluate_against(args.model, args.against, args.data, bootstrap=draws, **options)
        return comparison.model, comparison, {}
    found = evaluate(args.model, args.data, **options)
    return found, None, interval_of(found, samples=args.bootstrap) if args.bootstrap else {}


def _plot(args: argparse.Namespace, found: Evaluation, comparison: AccuracyComparison | None) -> None:
    from pathlib import Path

    from deploykit.runtime.evaluate.plots import f1_curve, write_plots

    shown = {Path(args.model).name: found}
    if comparison is not None:
        name = Path(args.against).name
        shown[name if name not in shown else args.against] = comparison.reference
    written = write_plots(Path(args.plots).expanduser(), shown)
    score, best = f1_curve(found).best
    print(
        f"drawn: {', '.join(map(str, written))}; the best F1 of {best:.3f} is at a score of {score:.3f}",
        file=sys.stderr,
    )


def _write_detections(found: Evaluation, place: str) -> None:
    import json
    from pathlib import Path

    from deploykit.runtime.files import write_whole

    write_whole(Path(place).expanduser(), json.dumps(found.detections.entries()).encode())


def _print(found: Evaluation, args: argparse.Namespace, intervals: dict[str, Interval]) -> None:
    from rich.markup import escape
    from rich.table import Table

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    for name, text in _facts(found, args):
        facts.add_row(name, escape(text))
    out = console()
    out.print(facts)
    metrics = _table(found.task, "", *(["95 % interval"] if intervals else []), "")
    for name, value in found.metrics.items():
        meaning = MEANINGS[name]
        if found.task == "keypoints":
            meaning = meaning.replace("overlaps", "similarities").replace("overlap", "similarity")
        interval = [_between(intervals.get(name))] if intervals else []
        metrics.add_row(name, _number(value), *interval, meaning)
    out.print()
    out.print(metrics)
    if args.per_class:
        classes = _table("class", "AP", "AP50", "objects", "detections")
        for name, score in found.per_class.items():
            counts = (f"{score.objects:,}", f"{score.detections:,}")
            classes.add_row(escape(name), _number(score.ap), _number(score.ap50), *counts)
        out.print()
        out.print(classes)


def _table(*heads: Any) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        table.add_column(head, justify="left" if i == 0 or (not head and i == len(heads) - 1) else "right")
    return table


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _number(value: float) -> str:
    return f"{value:.4f}" if value >= 0 else "none"


def _facts(found: Evaluation, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """What a reader must know to judge the numbers, a line each."""
    counts, used = found.counts, found.settings
    yield "model", args.model
    yield "data", f"{args.data}, images in {args.images}"
    parts = [f"{counts.images} of {counts.listed} listed"]
    parts += [f"{counts.missing} missing"] if counts.missing else []
    parts += [f"{counts.left_out} left out by --limit"] if counts.left_out else []
    yield "images", ", ".join(parts)
    crowd = f", {counts.crowd} crowd region{'s' * (counts.crowd != 1)} ignored" if counts.crowd else ""
    yield "truth", f"{counts.objects:,} objects of {counts.categories} categories (matched by {used.matched_by}){crowd}"
    full = f", {counts.full} image{'s' * (counts.full != 1)} with as many as max_det allows" if counts.full else ""
    yield "found", f"{counts.detections:,} detections{full}"
    labels = "each class over conf" if used.multi_label else "the best class a box"
    where = " (inside the network)" if used.nms == "graph" else ""
    yield "thresholds", f"conf {used.conf:g}, iou {used.iou:g}, max_det {used.max_det}, {labels}{where}"
    upstream = "; prepared as the original project evaluates" if used.preprocessing == "upstream" else ""
    canvas = "each image's own rectangle within" if used.rectangles else "the whole canvas of"
    yield "pixels", f"{canvas} {used.size[0]}x{used.size[1]} (height x width), batch {used.batch}{upstream}"
    yield "computes", f"{', '.join(used.providers)}; metrics by {used.engine} {found.versions[used.engine]}"
    stages = " + ".join(f"{stage} {ms:.1f}" for stage, ms in found.timings.items())
    yield "time", f"{stages} = {sum(found.timings.values()):.1f} ms an image"
