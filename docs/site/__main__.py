"""``python -m docs.site [BUILDER] [--out FOLDER]``: stage the pages, then run Sphinx on them; warnings are errors."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from sphinx.cmd.build import build_main

from docs.site.stage import ROOT, stage


def main() -> int:
    """Build, and return Sphinx's exit code."""
    parser = argparse.ArgumentParser(prog="python -m docs.site", description=__doc__)
    parser.add_argument("builder", nargs="?", default="html", choices=("html", "linkcheck"))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "_build", help="default: docs/_build")
    args = parser.parse_args()
    source = args.out / "source"
    shutil.rmtree(source, ignore_errors=True)
    stage(source)
    words = ["-q", "-W", "--keep-going", "-b", args.builder, "-c", str(ROOT / "docs"), "-d", str(args.out / "doctrees")]
    return int(build_main([*words, str(source), str(args.out / args.builder)]))


raise SystemExit(main())
