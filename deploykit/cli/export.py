"""``deploykit export``: a checkpoint to a verified ONNX file, and to TensorRT engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from deploykit.cli._comparison import print_comparison
from deploykit.cli._display import console, parity_lines, parity_table, print_json, shown_progress
from deploykit.cli._engine import engine_flags, print_engine
from deploykit.cli._options import Flag, Flags
from deploykit.cli._precision import (
    add_precision_arguments,
    gate_flags,
    gate_of,
    precision_facts,
    precision_flags,
    precision_of,
)

if TYPE_CHECKING:
    from deploykit.export.options import OnnxOptions
    from deploykit.export.report import ExportReport
    from deploykit.models.timm_options import TimmOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="the checkpoint; it is read, never executed (for engines also an .onnx file); or timm:NAME",
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=("onnx", "tensorrt", "tensorrt-rtx"),
        help="what to write; may be repeated. tensorrt-rtx builds without a GPU (default onnx)",
    )
    parser.add_argument(
        "--out", metavar="PATH", help="the file, or a folder (for several formats) (default: beside the weights)"
    )
    parser.add_argument(
        "--sample", action="append", default=[], metavar="IMAGE", help="check on this image (may be repeated)"
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="verify that the numbers agree (default yes)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")
    onnx_flags().add(parser)
    timm_flags().add(parser)
    add_precision_arguments(parser)
    engine_flags().add(parser)


def onnx_flags() -> Flags[OnnxOptions]:
    """What may be asked of the ONNX file."""
    from deploykit.export.options import Exporter, OnnxOptions
    from deploykit.spec.input import Dynamic

    return Flags(
        OnnxOptions,
        {
            "network": (
                Flag(
                    "--img",
                    "img",
                    "input size in pixels: one side, or height and width",
                    metavar="N",
                    type=int,
                    nargs="+",
                    fills=_size,
                ),
                Flag("--batch", "batch", "images per run", metavar="N", type=int),
                Flag(
                    "--dynamic",
                    "dynamic",
                    "batch: any number of images; shape: also any size that is a multiple of the stride",
                    choices=get_args(Dynamic),
                ),
                Flag(
                    "--preprocessing",
                    "preprocessing",
                    "legacy: for weights of YOLOX's release 0.0.1 (default: the model's own)",
                    metavar="NAME",
                ),
                Flag(
                    "--rewrite",
                    "rewrite",
                    "another form for the same weights; NAFNet: tlc, or tlc:N for crops of N pixels "
                    "(docs/models/nafnet.md)",
                    metavar="NAME",
                ),
            ),
            "graph": (
                Flag("--opset", "opset", "ONNX operator set, 18 to 23", metavar="N", type=int),
                Flag("--simplify", "simplify", "fold constants"),
                Flag("--exporter", "exporter", "of torch", choices=get_args(Exporter)),
            ),
            "detections": _detection_flags(),
        },
    )


def _detection_flags() -> tuple[Flag, ...]:
    from deploykit.export.options import NmsMode

    return (
        Flag(
            "--nms",
            "nms",
            "where overlaps are suppressed: none: by whoever runs it; graph: ONNX's NonMaxSuppression; basic: "
            "basic operators only (TensorRT for RTX); plugin: nodes of the native libraries",
            choices=get_args(NmsMode),
        ),
        Flag("--conf", "conf", "keep scores above this (default: the model's own)", metavar="X", type=float),
        Flag("--iou", "iou", "suppress overlaps above this (default: the model's own)", metavar="X", type=float),
        Flag("--max-det", "max_det", "at most so many objects per image (default 300)", metavar="N", type=int),
        Flag(
            "--pre-nms-topk",
            "pre_nms_topk",
            "NMS looks at so many candidates per image (default 1000)",
            metavar="N",
            type=int,
        ),
    )


def timm_flags() -> Flags[TimmOptions]:
    """What only models of timm have."""
    from deploykit.models.timm_options import TimmOptions

    return Flags(
        TimmOptions,
        {
            "models of timm (docs/models/timm.md)": (
                Flag("--timm-model", "model", "the model of timm that the file of weights is of", metavar="NAME"),
                Flag(
                    "--timm-pretrained",
                    "pretrained",
                    "of --weights timm:NAME: timm downloads the weights (default: they are random)",
                ),
                Flag(
                    "--num-classes",
                    "num_classes",
                    "of a model of timm (default: the model's own)",
                    metavar="N",
                    type=int,
                ),
                Flag(
                    "--in-chans",
                    "in_chans",
                    "channels of its images (default: the model's own)",
                    metavar="N",
                    type=int,
                ),
            )
        },
    )


def _size(sides: list[int]) -> tuple[int, int]:
    from deploykit.errors import UsageError

    if len(sides) > 2:
        raise UsageError(f"--img takes one side, or height and width; got {len(sides)} numbers")
    return sides[0], sides[-1]


def _timm_of(args: argparse.Namespace) -> TimmOptions | None:
    """The options of a model of timm; None: it is none.

    Raises:
        UsageError: they are given for another.
    """
    from deploykit.errors import UsageError

    flags = timm_flags()
    if args.weights.startswith("timm:") or "timm_model" in args:
        return flags.fill(args)
    if flags.given(args):
        raise UsageError(
            "--timm-pretrained, --num-classes and --in-chans are of models of timm: give --weights timm:NAME, or "
            "--timm-model NAME beside a file"
        )
    return None


def onnx_options(args: argparse.Namespace) -> OnnxOptions:
    """What the ONNX file shall be.

    Raises:
        UsageError: options that do not go with one another.
    """
    return onnx_flags().fill(args, timm=_timm_of(args), precision=precision_of(args), gate=gate_of(args))


def run(args: argparse.Namespace) -> int:
    """Export and print the report."""
    from deploykit.errors import UsageError
    from deploykit.export.formats import export_formats

    formats, engines = args.format or ["onnx"], engine_flags()
    if formats == ["onnx"] and (given := engines.given(args)):
        raise UsageError(f"{', '.join(given)}: for engines; add --format tensorrt or --format tensorrt-rtx")
    asked = [name for flags in (onnx_flags(), precision_flags(), gate_flags()) for name in flags.given(args)]
    if asked and args.weights.lower().endswith(".onnx"):
        raise UsageError(
            f"{', '.join(asked)}: for a checkpoint; {args.weights} is an ONNX file, which has that already"
        )
    with shown_progress() as progress:
        exports = export_formats(
            args.weights,
            formats,
            out=args.out,
            onnx=onnx_options(args),
            engines=engines.fill(args),
            spec=getattr(args, "spec", None),
            samples=args.sample,
            check=args.check,
            progress=progress,
        )
    if args.json:
        print_json(exports.to_dict())
        return 0
    if exports.onnx:
        _print(exports.onnx)
    for engine in exports.engines:
        print_engine(engine)
    runs_here = exports.onnx.path if exports.onnx else Path(args.weights)
    print(f"\nnext: deploykit predict --model {_quoted(runs_here)} --source people.jpg --out results")
    return 0


def _print(report: ExportReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deploykit.describe import preprocessing
    from deploykit.export.outputs import export_adapter_of
    from deploykit.runtime.files import format_size

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row("file", escape(f"{report.path}  {format_size(report.size)}"))
    facts.add_row("why this size", report.why_this_size())
    facts.add_row("graph", f"{report.nodes} nodes, opset {report.opset}, {report.spec.precision}")
    for name, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            facts.add_row(name, escape(str(tensor)))
    if report.precision is not None:
        for name, text in precision_facts(report.precision):
            facts.add_row(name, escape(text))
    facts.add_row("preprocessing", preprocessing(report.spec))
    facts.add_row(export_adapter_of(report.spec).meaning, report.spec.output.describe(report.spec))
    for note in report.notes:
        facts.add_row("note", escape(note))
    facts.add_row("time", ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items()))
    out = console()
    out.print(facts)
    if report.parity is None:
        out.print("parity: NOT CHECKED (--no-check): nothing verifies that this file gives the checkpoint's numbers")
    else:
        out.print()
        out.print(parity_table(report.parity))
        for line in parity_lines(report.parity):
            out.print(line, markup=False)
    if report.accuracy is not None:
        source = "the checkpoint" if report.precision is None else "the fp32 export"
        print_comparison(report.accuracy, source, per_class=False)


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
