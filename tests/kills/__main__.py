"""``python -m tests.kills``: kill commands at random moments, and print a table of what was left."""

from __future__ import annotations

import argparse
import importlib
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.kills.killing import Killed, Trial
from tests.kills.kinds import KINDS


def main(argv: list[str] | None = None) -> int:
    """Kill as often as asked for; the exit code is 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=300, help="how many in all (default 300)")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of commands, by commas (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    parser.add_argument("--minutes", type=float, help="begin no kill after so many minutes")
    args = parser.parse_args(argv)
    kinds = [KINDS[name] for name in args.only.split(",")]
    for module in dict.fromkeys(name for kind in kinds for name in kind.imports):
        importlib.import_module(module)
    end = time.monotonic() + args.minutes * 60 if args.minutes else float("inf")
    total = sum(kind.weight for kind in kinds)
    done: list[Killed] = []
    for kind in kinds:
        wanted = round(args.kills * kind.weight / total)
        with tempfile.TemporaryDirectory(prefix="kills-") as root:
            trial = Trial(kind, Path(root), random.Random(f"{args.seed} {kind.name}"))
            for _ in range(3 * wanted):
                if trial.found.kills == wanted or time.monotonic() > end:
                    break
                trial.kill()
        done.append(trial.found)
        print(row(trial.found), *(f"  {each}" for each in trial.found.wrong), sep="\n", flush=True)
    print("\n" + table(done))
    return int(any(found.wrong for found in done))


COLUMNS = (
    "command", "kills", "before an operation on a file", "over an older artefact", "then: as before", "all is new",
    "some files are new", "hidden files until the next start", "wrong",
)  # fmt: skip


def row(found: Killed) -> str:
    """A line of the table."""
    cells = (
        found.name, found.kills, found.at_file, found.over_old, found.old, found.new, found.part, found.left,
        len(found.wrong),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def table(done: list[Killed]) -> str:
    """All kinds and their sum, as Markdown."""
    total = Killed("all", wrong=[wrong for each in done for wrong in each.wrong])
    for name in ("kills", "at_file", "over_old", "old", "new", "part", "left"):
        setattr(total, name, sum(getattr(each, name) for each in done))
    head = "| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS)
    return "\n".join([head, *map(row, [*done, total])])


if __name__ == "__main__":
    sys.exit(main())
