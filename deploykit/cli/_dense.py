"""``deploykit eval`` of classification, segmentation and restoration."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from deploykit.cli._display import console, print_json, shown_progress
from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.runtime.evaluate.dense import DenseEvaluation

DENSE = ("segment", "classify", "restore", "features")
"""Tasks whose evaluation is not that of detections; of features it says that there is none."""

MEANINGS = {
    "top1": "share of the images whose class is the best one",
    "top5": "... is among the best five",
    "mIoU": "intersection over union of a class, mean over the classes",
    "mAcc": "share of a class' pixels that are right, mean over the classes",
    "aAcc": "share of all pixels that are right",
    "fwIoU": "intersection over union, weighted by the classes' pixels",
    "Dice": "of class 1: twice the intersection over the sum of both",
    "PSNR": "peak signal-to-noise ratio in decibels, mean over the images",
    "SSIM": "structural similarity, mean over the images",
}

OTHERS = ("conf", "iou", "max_det", "img", "batch", "detections", "plots", "bootstrap")
"""Options of detections, which mean nothing here."""


def task_of(args: argparse.Namespace) -> str:
    """The task that a model's spec names; nothing where that is found out by whoever opens it."""
    from deploykit.facade import open_session
    from deploykit.runtime.session import spec_of
    from deploykit.runtime.spec_file import read_spec

    given = read_spec(args.spec)
    if given is not None:
        return given.task
    if not str(args.model).lower().endswith(".onnx"):
        return ""
    with open_session(args.model, backend=args.backend) as session:
        return spec_of(session, args.model).task


def run_dense(args: argparse.Namespace) -> int:
    """Evaluate and print.

    Raises:
        UsageError: an option of detections was given.
    """
    given = [f"--{name.replace('_', '-')}" for name in OTHERS if getattr(args, name) is not None]
    given += ["--rectangles"] if args.rectangles else []
    if given:
        raise UsageError(f"{', '.join(given)}: for detections, not for classification, segmentation or restoration")
    models = [args.model, *([args.against] if args.against is not None else [])]
    found = []
    with shown_progress() as progress:
        progress.step("loading")
        for model in models:

            def tell(done: int, total: int) -> None:
                if done == 1:
                    progress.step("evaluating")
                progress.share(f"evaluating, {done} of {total} images", done / total)

            from deploykit.facade import evaluate_dense

            found.append(
                evaluate_dense(
                    model,
                    args.data,
                    images=args.images,
                    task=args.task,
                    limit=args.limit,
                    spec=args.spec,
                    backend=args.backend,
                    on_progress=tell,
                )
            )
    for note in found[0].notes:
        print(f"deploykit: note: {note}", file=sys.stderr)
    difference = {}
    if len(found) > 1:
        difference = {name: value - found[1].metrics[name] for name, value in found[0].metrics.items()}
    if args.json:
        about = {"model": args.model, "data": args.data, "images": args.images}
        against = {"against": found[1].to_dict(), "difference": difference} if difference else {}
        print_json({**about, **found[0].to_dict(), **against})
        return 0
    _print(found[0], args, found[1] if difference else None)
    return 0


def _print(found: DenseEvaluation, args: argparse.Namespace, against: DenseEvaluation | None) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    images = "" if args.images is None else f", images in {args.images}"
    facts.add_row("model", escape(args.model))
    facts.add_row("data", escape(f"{args.data}{images}"))
    facts.add_row("counts", ", ".join(f"{count:,} {what}" for what, count in found.counts.items()))
    facts.add_row("canvas", f"{found.settings['fit']}, {found.settings['size']}")
    facts.add_row("computes", ", ".join(found.settings["providers"]))
    stages = " + ".join(f"{stage} {ms:.1f}" for stage, ms in found.timings.items())
    facts.add_row("time", f"{stages} = {sum(found.timings.values()):.1f} ms an image")
    out.print(facts)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(found.task)
    for head in ("", *(("against", "difference") if against else ())):
        table.add_column(head, justify="right")
    table.add_column("")
    for name, value in found.metrics.items():
        other = [] if against is None else [f"{against.metrics[name]:.4f}", f"{value - against.metrics[name]:+.4f}"]
        table.add_row(name, f"{value:.4f}", *other, MEANINGS[name])
    out.print()
    out.print(table)
    rows = found.per_class if args.per_class else {}
    if args.per_class and found.per_image:
        rows = found.per_image
    if rows:
        columns = list(next(iter(rows.values())))
        details = Table(box=None, pad_edge=False, header_style="bold")
        details.add_column("image" if found.per_image else "class")
        for column in columns:
            details.add_column(column, justify="right")
        for name, values in rows.items():
            details.add_row(escape(name), *(f"{values[c]:.4f}" if c != "images" else f"{values[c]}" for c in columns))
        out.print()
        out.print(details)
