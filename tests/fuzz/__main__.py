"""``python -m tests.fuzz``: a long run over all targets, or one, and a table of what became of the inputs."""

from __future__ import annotations

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

from tests.fuzz.campaign import Limits, fuzzed, shares, table
from tests.fuzz.target import TARGETS, input_of, named, outcome_of


def main() -> int:
    """Run, and return 1 if there are findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=200_000, help="of all targets together (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one; may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("fuzzed"), help="findings, and what was done; a further run goes on"
    )
    parser.add_argument("--limit", type=float, default=Limits.seconds, help="seconds of the processor for an input")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="make this one input of a target and take it here")
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="of --only: keep it in a folder, and do not take it"
    )
    args = parser.parse_args()
    names = args.target or list(TARGETS)
    if args.only is not None:
        return _only(names[0], args.seed, args.only)
    done = fuzzed(
        shares(names, args.inputs), args.seed, args.out, jobs=args.jobs, limits=Limits(args.limit, 6 * args.limit)
    )
    print(table(done))
    for name, tally in done.items():
        for kind, count in tally.kinds.most_common():
            print(f"{name}: {count:,} x {kind} ({args.out / f'{name}-{args.seed}'})")
    return 1 if any(tally.findings for tally in done.values()) else 0


def _only(name: str, seed: int, number: int) -> int:
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work, "target")
        folder.mkdir()
        target = named(name)(folder)
        try:
            outcome, error = outcome_of(target, input_of(target, seed, number))
        finally:
            target.close()
    print(outcome, *(traceback.format_exception(error) if error else ()), sep="\n")
    return 0 if outcome in ("accepted", "refused") else 1


if __name__ == "__main__":
    sys.exit(main())
