"""``deploykit doctor``: what is installed, what of it works, and what to type for the rest.

It prints plain text, because the package that draws tables may be what is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from deploykit.cli._display import WIDTH, print_json

if TYPE_CHECKING:
    from deploykit.doctor.report import DoctorReport, Item

EXAMPLES = (
    ("deploykit doctor", "problems first; exit code 3 if something installed does not work"),
    ("deploykit doctor --json", "for a bug report or a script"),
    ("deploykit doctor --sbom > sbom.cdx.json", "the installed packages, for an audit"),
)
NAMES = 20  # columns of the name of an item


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")
    parser.add_argument(
        "--sbom", action="store_true", help="print the bill of materials of what is installed instead (CycloneDX 1.6)"
    )


def run(args: argparse.Namespace) -> int:
    """Print what was found, problems first; return the exit code of a MissingDependencyError if something is broken."""
    from deploykit.doctor.examine import examine, native_libraries
    from deploykit.errors import MissingDependencyError

    if args.sbom:
        from deploykit.doctor.sbom import of_environment

        print_json(of_environment(native_libraries()))
        return 0
    report = examine()
    if args.json:
        print_json(report.to_dict())
    else:
        _print(report)
    return 0 if report.ok else MissingDependencyError.exit_code


def _print(report: DoctorReport) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    if report.problems:
        print("problems")
        for item in report.problems:
            _print_item(item, width, f"{item.state}: {item.says}")
        print()
    section = ""
    for item in (item for item in report.items if item.state in ("ok", "missing")):
        if item.section != section:
            section = item.section
            print(section)
        _print_item(item, width, item.says if item.state == "ok" else f"- {item.says}")
    print()
    broken = len(report.broken)
    what = "1 installed thing does" if broken == 1 else f"{broken} installed things do"
    works = "nothing is broken of what ended in time" if report.slow else "everything that is installed works"
    print(f"{what} not work: see the problems above" if broken else works)


def _print_item(item: Item, width: int, says: str) -> None:
    text = f"{says}; {item.do}" if item.do else says
    indent = " " * (NAMES + 2)
    print(
        textwrap.fill(
            f"  {item.name:<{NAMES - 1}} {text}",
            max(width, 60),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    )
