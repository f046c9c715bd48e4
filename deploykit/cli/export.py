"""``deploykit export``: turn a checkpoint into a verified ONNX file and TensorRT engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from deploykit.cli._comparison import print_comparison
from deploykit.cli._display import console, note, parity_lines, parity_table, print_json, shown_progress
from deploykit.cli._engine import engine_flags, print_engine
from deploykit.cli._loading import loading_flags, loading_of
from deploykit.cli._model import add_model, model_of
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

EXAMPLES = (
    ("deploykit export yolov7-w6-pose.pt --img 960", "a verified ONNX file"),
    ("deploykit export best.pt --dynamic batch --nms graph", "any batch size, with NMS in the graph"),
    ("deploykit export best.pt --precision int8 --calib images/", "int8, calibrated on images"),
    ("deploykit export best.pt --format tensorrt --precision fp16", "an fp16 engine for the GPU of this machine"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(
        parser,
        "a checkpoint, which is read but never executed; or timm:NAME; for engines also an .onnx file",
        also=("--weights",),
    )
    parser.add_argument(
        "--format",
        action="append",
        choices=("onnx", "tensorrt", "tensorrt-rtx"),
        help="the format to write (default: by the suffix of --out, else onnx); tensorrt-rtx builds without a GPU "
        "(may be repeated)",
    )
    parser.add_argument(
        "--out", metavar="PATH", help="the output file, or a folder for several formats (default: beside the weights)"
    )
    parser.add_argument(
        "--sample", action="append", default=[], metavar="IMAGE", help="verify on this image too (may be repeated)"
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="verify that the exported model gives the same outputs (default yes)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")
    onnx_flags().add(parser)
    loading_flags().add(parser)
    timm_flags().add(parser)
    add_precision_arguments(parser)
    engine_flags().add(parser)


def onnx_flags() -> Flags[OnnxOptions]:
    """Return the options that fill :class:`deploykit.export.options.OnnxOptions`."""
    from deploykit.export.options import Exporter, Layout, OnnxOptions
    from deploykit.spec.input import Dynamic

    return Flags(
        OnnxOptions,
        {
            "network": (
                Flag(
                    "--img",
                    "img",
                    "input size in pixels: one side, or height and width (480 640, or 480x640)",
                    metavar="N",
                    type=int,
                    nargs="+",
                    fills=_size,
                ),
                Flag("--batch", "batch", "images per run", metavar="N", type=int),
                Flag(
                    "--dynamic",
                    "dynamic",
                    "batch (or the option alone): any batch size; shape: also any image size (multiples of the stride)",
                    choices=get_args(Dynamic),
                ),
                Flag(
                    "--preprocessing",
                    "preprocessing",
                    "legacy: for weights of YOLOX 0.0.1, or of a classifier of ultralytics before 8.1 (default: the "
                    "model's own)",
                    metavar="NAME",
                ),
                Flag(
                    "--rewrite",
                    "rewrite",
                    "a variant of the network for the same weights; NAFNet: tlc, or tlc:N for crops of N pixels "
                    "(docs/models/nafnet.md)",
                    metavar="NAME",
                ),
            ),
            "graph": (
                Flag("--opset", "opset", "ONNX operator set, 13 to 23", metavar="N", type=int),
                Flag("--simplify", "simplify", "fold constants"),
                Flag("--exporter", "exporter", "exporter of torch.onnx", choices=get_args(Exporter)),
                Flag(
                    "--layout",
                    "layout",
                    "of the outputs; ultralytics: as that package has them, with its metadata, for its own consumers",
                    choices=get_args(Layout),
                ),
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
            "where NMS runs: none: in the runtime; graph: in the graph, by NonMaxSuppression; basic: in the graph, by "
            "basic operators only (for TensorRT for RTX); plugin: in the graph, by nodes of the native libraries",
            choices=get_args(NmsMode),
        ),
        Flag("--conf", "conf", "confidence threshold (default: the model's own)", metavar="X", type=float),
        Flag("--iou", "iou", "IoU threshold of NMS (default: the model's own)", metavar="X", type=float),
        Flag("--max-det", "max_det", "maximum number of detections per image (default 300)", metavar="N", type=int),
        Flag(
            "--pre-nms-topk",
            "pre_nms_topk",
            "number of best candidates per image that NMS considers (default 1000)",
            metavar="N",
            type=int,
        ),
    )


def timm_flags() -> Flags[TimmOptions]:
    """Return the options that fill :class:`deploykit.models.timm_options.TimmOptions`."""
    from deploykit.models.timm_options import TimmOptions

    return Flags(
        TimmOptions,
        {
            "timm models (docs/models/timm.md)": (
                Flag("--timm-model", "model", "the timm model that the weights file belongs to", metavar="NAME"),
                Flag(
                    "--timm-pretrained",
                    "pretrained",
                    "for timm:NAME: let timm download the weights (default: random weights)",
                ),
                Flag(
                    "--num-classes",
                    "num_classes",
                    "number of classes of a timm model (default: the model's own)",
                    metavar="N",
                    type=int,
                ),
                Flag(
                    "--in-chans",
                    "in_chans",
                    "number of image channels of a timm model (default: the model's own)",
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
    """Return the options of a timm model; None if the model is not from timm.

    Raises:
        UsageError: they are given for a model that is not from timm.
    """
    from deploykit.errors import UsageError

    flags = timm_flags()
    if model_of(args).startswith("timm:") or "timm_model" in args:
        return flags.fill(args)
    if flags.given(args):
        raise UsageError(
            "--timm-pretrained, --num-classes and --in-chans are for timm models: give --weights timm:NAME, or "
            "--timm-model NAME beside a file"
        )
    return None


def onnx_options(args: argparse.Namespace) -> OnnxOptions:
    """Return the options of the ONNX file.

    Raises:
        UsageError: options that exclude each other.
    """
    return onnx_flags().fill(
        args, timm=_timm_of(args), loading=loading_of(args), precision=precision_of(args), gate=gate_of(args)
    )


def run(args: argparse.Namespace) -> int:
    """Export and print the report."""
    from deploykit.errors import UsageError
    from deploykit.export.formats import export_formats, formats_for

    formats, engines = formats_for(args.format or (), args.out), engine_flags()
    if not args.format and formats != ("onnx",):
        note(f"--out {args.out} is an engine: --format {formats[0]}")
    if formats == ("onnx",) and (given := engines.given(args)):
        raise UsageError(f"{', '.join(given)}: for engines; add --format tensorrt or --format tensorrt-rtx")
    asked = [
        name for flags in (onnx_flags(), loading_flags(), precision_flags(), gate_flags()) for name in flags.given(args)
    ]
    weights = model_of(args)
    if asked and weights.lower().endswith(".onnx"):
        told = (
            "; deploykit quantize converts an ONNX file to another precision" if precision_flags().given(args) else ""
        )
        raise UsageError(f"{', '.join(asked)}: for a checkpoint; {weights} is an ONNX file, where they are fixed{told}")
    with shown_progress() as progress:
        exports = export_formats(
            weights,
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
    runs_here = exports.onnx.path if exports.onnx else Path(weights)
    print(f"\nnext: deploykit predict {_quoted(runs_here)} people.jpg --out results")
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
    facts.add_row("graph", f"{report.nodes} nodes, opset {report.opset}, {report.spec.precision}; {report.runtime}")
    for name, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            facts.add_row(name, escape(str(tensor)))
    if report.precision is not None:
        for name, text in precision_facts(report.precision):
            facts.add_row(name, escape(text))
    facts.add_row("preprocessing", preprocessing(report.spec))
    facts.add_row(export_adapter_of(report.spec).meaning, report.spec.output.describe(report.spec))
    for text in report.notes:
        facts.add_row("note", escape(text))
    facts.add_row("time", ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items()))
    out = console()
    out.print(facts)
    if report.parity is None:
        out.print("parity: NOT CHECKED (--no-check): this file is not verified against the checkpoint")
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
