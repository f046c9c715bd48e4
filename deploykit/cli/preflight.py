"""``deploykit preflight``: which runtimes take an ONNX file, and what stops the others."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deploykit.cli._display import console, print_json, shown_progress

if TYPE_CHECKING:
    from deploykit.export.preflight.report import Finding, PreflightReport

EXAMPLES = (
    ("deploykit preflight best.onnx", "ONNX Runtime, TensorRT 10 and 11, TensorRT for RTX"),
    ("deploykit preflight best.onnx --target tensorrt-10", "exit code 60 if TensorRT 10 would refuse it"),
)

NAMES = {
    "onnxruntime": "ONNX Runtime (CPU)",
    "tensorrt-10": "TensorRT 10",
    "tensorrt-11": "TensorRT 11",
    "tensorrt-rtx": "TensorRT for RTX",
}
STYLES = {"refused": "bold red", "loaded here": "green", "built here": "green", "expected (table)": "green"}
SHOWN = 12  # findings of one kind; --json has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", help="an ONNX file, of deploykit or of another project")
    parser.add_argument(
        "--target",
        action="append",
        choices=tuple(NAMES),
        help="ask for this runtime only; may be repeated (default: all)",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="of one build, which runs in a process of its own (default 300)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print a verdict for each runtime, then what was found; return the code of a BackendError if one refuses."""
    from deploykit.errors import BackendError
    from deploykit.export.preflight.check import preflight
    from deploykit.export.preflight.report import TARGETS

    with shown_progress() as progress:
        report = preflight(args.file, targets=args.target or TARGETS, seconds=args.time_limit, progress=progress)
    if args.json:
        print_json(report.to_dict())
    else:
        _print(report)
    return 0 if report.ok else BackendError.exit_code


def _print(report: PreflightReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("runtime", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("by", no_wrap=True)
    table.add_column("", overflow="fold")
    for verdict in report.verdicts:
        style = STYLES.get(verdict.says, "yellow")
        words = f"[{style}]{verdict.says}[/{style}]"
        table.add_row(NAMES[verdict.target], words, escape(verdict.by), escape(verdict.why))
    out.print(table)
    out.print(
        f"opset {report.opset}, IR version {report.ir_version}, {report.nodes} node{'s' * (report.nodes != 1)}",
        markup=False,
    )
    for level, heading in (("refused", "stops"), ("unknown", "unknown"), ("doubt", "in doubt"), ("note", "to know")):
        found = [finding for finding in report.findings if finding.level == level]
        for finding in found[:SHOWN]:
            out.print(f"{heading:<8}  {_line(finding)}", markup=False, soft_wrap=True)
        if len(found) > SHOWN:
            out.print(f"{heading:<8}  and {len(found) - SHOWN} more (--json lists them)", markup=False)


def _line(finding: Finding) -> str:
    names = ", ".join(NAMES[target].removesuffix(" (CPU)") for target in finding.targets)
    advice = f"; {finding.do}" if finding.do else ""
    return f"{names}: {finding.where}: {finding.why}{advice}"
