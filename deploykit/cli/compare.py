"""``deploykit compare``: check that two models give the same outputs."""

from __future__ import annotations

import argparse

from deploykit.cli._compute import compute_flags, compute_of
from deploykit.cli._display import console, parity_lines, parity_table, print_json, shown_progress
from deploykit.cli._loading import loading_flags, loading_of

EXAMPLES = (
    ("deploykit compare best.pt best.onnx", "a checkpoint and its export"),
    ("deploykit compare fp32.onnx int8.onnx --sample bus.jpg", "two exports, on an image of your own"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("a", metavar="A", help="the reference: a checkpoint or an exported model")
    parser.add_argument("b", metavar="B", help="the model to compare with it")
    parser.add_argument(
        "--sample", action="append", default=[], metavar="IMAGE", help="compare on this image too (may be repeated)"
    )
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of models that do not carry one")
    compute_flags().add(parser)
    loading_flags().add(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Compare and print the table; return the exit code of a ParityError if they differ."""
    from deploykit.errors import ParityError, UsageError
    from deploykit.export.parity.compare import compare

    if args.a == args.b:
        raise UsageError(f"{args.a} would be compared with itself")
    with shown_progress() as progress:
        report = compare(
            args.a,
            args.b,
            images=args.sample,
            spec=args.spec,
            loading=loading_of(args),
            progress=progress,
            **compute_of(args),
        )
    if args.json:
        print_json(report.to_dict())
    else:
        out = console()
        out.print(parity_table(report))
        for line in parity_lines(report):
            out.print(line, markup=False)
        agrees = f"{args.b} agrees with {args.a}" if report.tolerance.judged else "no verdict: see above"
        print(agrees if report.ok else f"they differ: {report.worst}")
    return 0 if report.ok else ParityError.exit_code
