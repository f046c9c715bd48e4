"""``deploykit fetch``: a released checkpoint from its authors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("name", metavar="MODEL", help="a name from deploykit models")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to keep it (default: the released name)")
    parser.add_argument("--url", metavar="URL", help="a mirror, instead of the place where the authors released it")
    parser.add_argument("--sha256", metavar="HEX", help="refuse a file with another SHA-256")


def run(args: argparse.Namespace) -> int:
    """Download with a progress bar, check, and say whose it is."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from deploykit.fetch import fetch

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    shown = Console(stderr=True)
    with Progress(*columns, console=shown, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"fetching {args.name}", total=None)
        got = fetch(
            args.name,
            out=args.out,
            url=args.url,
            sha256=args.sha256,
            on_bytes=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(f"{got.path}: {got.size:,} bytes, SHA-256 {got.sha256}")
    print(f"source: {got.url} ({got.licence})")
    if args.sha256 is None:
        print("the authors publish no SHA-256: compare this one with a copy that you trust, or pass --sha256")
    return 0
