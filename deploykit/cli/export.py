"""``deploykit export``: a checkpoint to a verified ONNX file, and to TensorRT engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.cli._comparison import print_comparison
from deploykit.cli._display import console, parity_lines, parity_table, print_json, steps
from deploykit.cli._engine import add_engine_arguments, engine_options, given_engine_options, print_engine
from deploykit.cli._precision import add_precision_arguments, gate_of, lowering_of, precision_facts

if TYPE_CHECKING:
    from deploykit.export.report import ExportReport
    from deploykit.models.timm_models import TimmOptions


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
        "--img", type=int, nargs="+", metavar="N", help="input size in pixels: one side, or height and width"
    )
    _add_form_arguments(parser)
    _add_timm_arguments(parser)
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images a run (default 1)")
    parser.add_argument(
        "--dynamic",
        choices=("none", "batch", "shape"),
        default="none",
        help="batch: any number of images; shape: also any size that is a multiple of the stride (default none)",
    )
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="ONNX operator set, 18 to 23 (default 18)")
    parser.add_argument(
        "--simplify", action=argparse.BooleanOptionalAction, default=True, help="fold constants (default yes)"
    )
    parser.add_argument("--exporter", choices=("dynamo", "legacy"), default="dynamo", help="of torch (default dynamo)")
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
    group = parser.add_argument_group("detections")
    group.add_argument(
        "--nms",
        choices=("none", "graph", "basic", "plugin"),
        default="none",
        help="where overlaps are suppressed: none: by whoever runs it; graph: ONNX's NonMaxSuppression; basic: basic "
        "operators only (TensorRT for RTX); plugin: nodes of the native libraries (default none)",
    )
    group.add_argument("--conf", type=float, metavar="X", help="keep scores above this (default: the model's own)")
    group.add_argument("--iou", type=float, metavar="X", help="suppress overlaps above this (default: the model's own)")
    group.add_argument("--max-det", type=int, metavar="N", help="at most so many objects an image (default 300)")
    group.add_argument(
        "--pre-nms-topk", type=int, metavar="N", help="NMS looks at so many candidates an image (default 1000)"
    )
    add_precision_arguments(parser)
    add_engine_arguments(parser)


def _add_form_arguments(parser: argparse.ArgumentParser) -> None:
    """What one set of weights may be used as in more than one way."""
    parser.add_argument(
        "--preprocessing", default="default", metavar="NAME", help="legacy: for weights of YOLOX's release 0.0.1"
    )
    parser.add_argument(
        "--rewrite",
        default="",
        metavar="NAME",
        help="another form for the same weights; NAFNet: tlc, or tlc:N for crops of N pixels (docs/models/nafnet.md)",
    )


def _add_timm_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models of timm (docs/models/timm.md)")
    group.add_argument("--timm-model", metavar="NAME", help="the model of timm that the file of weights is of")
    group.add_argument(
        "--timm-pretrained",
        action="store_true",
        help="of --weights timm:NAME: timm downloads the weights (default: they are random)",
    )
    group.add_argument("--num-classes", type=int, metavar="N", help="of a model of timm (default: the model's own)")
    group.add_argument("--in-chans", type=int, metavar="N", help="channels of its images (default: the model's own)")


def _timm_of(args: argparse.Namespace) -> TimmOptions | None:
    """The options of a model of timm; None: it is none.

    Raises:
        UsageError: they are given for another.
    """
    from deploykit.errors import UsageError

    given = (args.timm_model, args.timm_pretrained, args.num_classes, args.in_chans)
    named = args.weights.startswith("timm:")
    if not named and args.timm_model is None:
        if given != (None, False, None, None):
            raise UsageError(
                "--timm-pretrained, --num-classes and --in-chans are of models of timm: give --weights timm:NAME, or "
                "--timm-model NAME beside a file"
            )
        return None
    from deploykit.models.timm_models import TimmOptions

    return TimmOptions(*given)


def run(args: argparse.Namespace) -> int:
    """Export and print the report."""
    from deploykit.errors import UsageError

    if args.img is not None and len(args.img) > 2:
        raise UsageError(f"--img takes one side, or height and width; got {len(args.img)} numbers")
    formats = args.format or ["onnx"]
    engines = formats != ["onnx"]
    if not engines and (given := given_engine_options(args)):
        raise UsageError(f"{', '.join(given)}: for engines; add --format tensorrt or --format tensorrt-rtx")
    fixed = (args.img, args.batch, args.dynamic, args.preprocessing, args.rewrite, args.precision)
    if args.weights.lower().endswith(".onnx") and fixed != (None, 1, "none", "default", "", "fp32"):
        raise UsageError(
            "--img, --batch, --dynamic, --preprocessing, --rewrite and --precision are in an ONNX file already: leave "
            "them out, or give the checkpoint"
        )
    from deploykit.export.formats import export_formats

    size = None if args.img is None else (args.img[0], args.img[-1])
    with steps() as told:
        exports = export_formats(
            args.weights,
            formats,
            out=args.out,
            onnx_options={
                "img": size,
                "batch": args.batch,
                "dynamic": args.dynamic,
                "opset": args.opset,
                "simplify": args.simplify,
                "exporter": args.exporter,
                "nms": args.nms,
                "conf": args.conf,
                "iou": args.iou,
                "max_det": args.max_det,
                "pre_nms_topk": args.pre_nms_topk,
                "preprocessing": args.preprocessing,
                "rewrite": args.rewrite,
                "timm": _timm_of(args),
                "lowering": lowering_of(args),
                "gate": gate_of(args),
            },
            engine_options=engine_options(args) if engines else None,
            samples=args.sample,
            check=args.check,
            on_step=told,
            on_progress=told.share,
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
    from deploykit.runtime.files import megabytes

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    facts.add_row("file", escape(f"{report.path}  {megabytes(report.size)}"))
    facts.add_row("why this size", report.why_this_size())
    facts.add_row("graph", f"{report.nodes} nodes, opset {report.opset}, {report.spec.precision}")
    for name, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            facts.add_row(name, escape(str(tensor)))
    if report.lowered is not None:
        for name, text in precision_facts(report.lowered):
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
        source = "the checkpoint" if report.lowered is None else "the fp32 export"
        print_comparison(report.accuracy, source, per_class=False)


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
