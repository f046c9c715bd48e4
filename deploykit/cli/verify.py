"""``deploykit verify``: an exported model against its reference, as a gate in CI."""

from __future__ import annotations

import argparse
from pathlib import Path

from deploykit.cli._compute import compute_flags, compute_of
from deploykit.cli._display import console, parity_lines, parity_table, print_json, shown_progress
from deploykit.cli._loading import loading_flags, loading_of

EXAMPLES = (
    ("deploykit verify best.pt best.onnx", "the export of a checkpoint; exit code 0: verified, 42: it differs"),
    ("deploykit verify best.pt best.onnx --junit verify.xml", "with a JUnit file, which CI systems show"),
    ("deploykit verify fp32.onnx int8.onnx --tolerance pixels=8,probability=0.2", "with limits of your own"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "a", metavar="A", help="the reference: a checkpoint, an exported model, or reference values (.npz)"
    )
    parser.add_argument("b", metavar="B", help="the exported model to verify")
    parser.add_argument(
        "--sample", action="append", default=[], metavar="IMAGE", help="verify on this image too (may be repeated)"
    )
    parser.add_argument(
        "--tolerance",
        default="",
        metavar="LIMITS",
        help="fp32, fp16 or bf16, and FIELD=NUMBER to change a limit, joined by commas (default: that of the lowest "
        "precision that either model computes in; docs/guides/ci.md lists the fields)",
    )
    parser.add_argument("--spec", metavar="FILE", help="the spec (JSON) of models that do not carry one")
    parser.add_argument(
        "--junit", type=Path, metavar="FILE", help="write a JUnit XML file, with one test case for each check"
    )
    compute_flags().add(parser)
    loading_flags().add(parser)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Verify and print the table; return the exit code of a ParityError if a check failed."""
    from deploykit.errors import DeployError, ParityError, UsageError
    from deploykit.export.verify import error_junit, verify

    try:
        if args.a == args.b:
            raise UsageError(f"{args.a} would be verified against itself")
        with shown_progress() as progress:
            report = verify(
                args.a,
                args.b,
                images=args.sample,
                spec=args.spec,
                tolerance=args.tolerance,
                loading=loading_of(args),
                progress=progress,
                **compute_of(args),
            )
    except DeployError as e:
        if args.junit:
            error_junit(args.a, args.b, e, args.junit)
        raise
    if args.junit:
        report.junit(args.junit)
    if args.json:
        print_json(report.to_dict())
    else:
        out = console()
        out.print(parity_table(report.parity))
        for line in parity_lines(report.parity):
            out.print(line, markup=False)
        print(f"{len(report.checks) - len(report.failures)} of {len(report.checks)} checks passed")
        for check in report.failures[1:]:
            print(f"failed: {check.says}")
        verdict = "verified" if report.ok else f"NOT verified: {report.failures[0].says}"
        print(f"{args.b} is {verdict}" + (f" against {args.a}" if report.ok else ""))
    return 0 if report.ok else ParityError.exit_code
