"""``deploykit quantize``: an fp32 ONNX file of any project to a verified file of a lower precision."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, get_args

from deploykit.cli._comparison import print_comparison
from deploykit.cli._display import console, parity_lines, parity_table, print_json, shown_progress
from deploykit.cli._model import add_model, model_of
from deploykit.cli._options import Flag, Flags
from deploykit.cli._precision import add_precision_arguments, gate_of, precision_facts, precision_of

if TYPE_CHECKING:
    from deploykit.export.foreign.report import ConversionReport
    from deploykit.export.options import ImagePreparation

EXAMPLES = (
    ("deploykit quantize theirs.onnx --precision fp16", "theirs.fp16.onnx, verified against theirs.onnx"),
    ("deploykit quantize theirs.onnx --precision int8 --calib images/", "int8, calibrated on images"),
    ("deploykit quantize theirs.onnx --precision int8 --calib images/ --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
     "a classifier, whose file does not say how images are prepared"),
    ("deploykit quantize theirs.onnx --precision fp16 --input orig_target_sizes=640,640",
     "a network that takes more than images"),
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser, "an ONNX file in fp32, of deploykit or of another project")
    parser.add_argument("--out", metavar="PATH", help="the new file, or a folder for it (default: X.int8.onnx)")
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of a file that carries none")
    parser.add_argument(
        "--sample",
        action="append",
        default=[],
        metavar="IMAGE",
        help="verify on this image; may be repeated (default: some of --calib, or the image that ships with deploykit)",
    )
    parser.add_argument(
        "--tolerance",
        default="",
        metavar="LIMITS",
        help="FIELD=NUMBER joined by commas, as for deploykit verify (default: those of the precision; "
        "docs/precision.md)",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=N,N",
        help="the value, in all runs, of an input that takes no images; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")
    preparation_flags().add(parser)
    add_precision_arguments(parser, needed=True)


def preparation_flags() -> Flags[ImagePreparation]:
    """Return the options that fill :class:`deploykit.export.options.ImagePreparation`."""
    from deploykit.export.options import Colour, FitKind, ImagePreparation

    def size(sides: list[int]) -> tuple[int, int]:
        return sides[0], sides[-1]

    return Flags(
        ImagePreparation,
        {
            "images, where no spec says how they are prepared": (
                Flag(
                    "--img",
                    "img",
                    "input size in pixels of a file that takes any: one side, or height and width",
                    metavar="N",
                    type=int,
                    nargs="+",
                    fills=size,
                ),
                Flag("--colour", "colour", "order of the channels (default: rgb)", choices=get_args(Colour)),
                Flag(
                    "--scale",
                    "scale",
                    "what pixels of 0 to 255 are multiplied by (default: 1/255, for 0 to 1)",
                    metavar="X",
                    type=_number,
                ),
                Flag("--mean", "mean", "what is taken off then", metavar="X", type=float, nargs="+", fills=tuple),
                Flag("--std", "std", "what they are divided by then", metavar="X", type=float, nargs="+", fills=tuple),
                Flag(
                    "--fit",
                    "fit",
                    "how an image gets this size (default: letterbox; crop for classifiers)",
                    choices=get_args(FitKind),
                ),
            )
        },
    )


def _number(text: str) -> float:
    """A number, or a fraction of two."""
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"invalid number: {text!r}") from None


def run(args: argparse.Namespace) -> int:
    """Convert and print the report."""
    from deploykit.export.foreign.quantize import quantize_onnx

    with shown_progress() as progress:
        report = quantize_onnx(
            model_of(args),
            precision=precision_of(args),
            out=args.out,
            spec=args.spec,
            samples=args.sample,
            tolerance=args.tolerance,
            gate=gate_of(args),
            preparation=preparation_flags().fill(args),
            inputs=dict(_input(text) for text in args.input),
            progress=progress,
        )
    if args.json:
        print_json(report.to_dict())
    else:
        _print(report)
    return 0


def _input(text: str) -> tuple[str, Any]:
    """The name and the numbers of ``NAME=N,N``."""
    from deploykit.errors import UsageError

    name, _, numbers = text.partition("=")
    try:
        return name, [float(number) for number in numbers.split(",")]
    except ValueError:
        raise UsageError(f"--input takes NAME=NUMBER,NUMBER; got {text!r}") from None


def _print(report: ConversionReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from deploykit.describe import preprocessing
    from deploykit.runtime.files import format_size

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column()
    size, before = format_size(report.size), format_size(report.source_size)
    facts.add_row("file", escape(f"{report.path}  {size}, from {report.source}  {before}"))
    facts.add_row("graph", f"{report.nodes} nodes, opset {report.opset}")
    if report.prepared:
        facts.add_row("prepared", escape(", ".join(report.prepared)))
    if report.choice:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in report.choice.items())
        layers = f", {report.kept_layers} layers among them" if report.kept_layers else ""
        facts.add_row("in fp32", escape(f"everything from the first choice on: {kinds}{layers}"))
    for name, text in precision_facts(report.precision):
        facts.add_row(name, escape(text))
    facts.add_row("preprocessing", preprocessing(report.spec))
    for text in report.notes:
        facts.add_row("note", escape(text))
    facts.add_row("time", ", ".join(f"{step} {seconds:.1f} s" for step, seconds in report.seconds.items()))
    out = console()
    out.print(facts)
    out.print()
    out.print(parity_table(report.parity))
    for line in parity_lines(report.parity):
        out.print(line, markup=False)
    if report.accuracy is not None:
        print_comparison(report.accuracy, "the source", per_class=False)
    print(f"\n{report.path} is verified against {report.source}")
