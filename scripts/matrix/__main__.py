"""Install deploykit beside old and new versions of what it needs, run checks, and write docs/compatibility.md.

    python -m scripts.matrix                                # every cell
    python -m scripts.matrix --only oldest                  # the lower bounds of pyproject.toml, on every Python
    python -m scripts.matrix --only '3.14, newest' --python 3.14=/opt/python3.14/bin/python3

It needs uv, a C++ compiler, a network, and about 15 GB of disk for uv's cache and one environment at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict

from scripts.matrix.cells import CELLS
from scripts.matrix.environments import Tools, run_cell, wheel
from scripts.matrix.page import PAGE, RESULTS, kept, page_of


def main() -> int:
    """Run the cells that are asked for, keep what became of them, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], metavar="WORD", help="cells with this in their name")
    parser.add_argument("--python", action="append", default=[], metavar="VERSION=PATH", help="an interpreter")
    parser.add_argument("--find-links", action="append", default=[], metavar="DIR", help="as of uv pip install")
    parser.add_argument("--uv", default=shutil.which("uv") or "uv", metavar="PATH")
    parser.add_argument("--missing", action="store_true", help="cells alone that have not passed yet")
    parser.add_argument("--page", action="store_true", help="write the page from what is kept, and run nothing")
    args = parser.parse_args()
    tools = Tools(args.uv, tuple(args.find_links), dict(pair.split("=", 1) for pair in args.python))
    outcomes, bad = kept(), 0
    cells = [cell for cell in CELLS if not args.only or any(word in cell.name for word in args.only)]
    if args.missing:
        cells = [cell for cell in cells if cell.name not in outcomes or outcomes[cell.name].failed]
    if not args.page:
        with wheel(tools) as built:
            for cell in cells:
                print(cell.name, file=sys.stderr)
                if tools.interpreter(cell.python) is None:
                    print(f"    not run: no Python {cell.python}", file=sys.stderr)
                    continue
                outcome = run_cell(cell, built, tools)
                print(f"    {outcome.failed or 'passed'}", file=sys.stderr)
                bad += bool(outcome.failed)
                outcomes = {**kept(), cell.name: outcome}  # another process may run other cells
                RESULTS.write_text(json.dumps({name: asdict(each) for name, each in outcomes.items()}, indent=1) + "\n")
    PAGE.write_text(page_of(outcomes))
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
