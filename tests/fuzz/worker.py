"""The process that takes inputs: under a limit of its memory, telling before each which one it is.

Run as ``python -m tests.fuzz.worker TARGET SEED FIRST LAST FOLDER``; it ends by itself only after its last input, or
after one that took more memory than is stated. ``TARGET SEED NUMBER FOLDER`` keeps one input in a folder.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from tests.fuzz.target import Files, Outcome, Target, input_of, named, outcome_of

__all__ = ["KEPT", "limit_memory", "save"]

KEPT = 3  # inputs that are kept of each kind of finding
EVERY = 64  # inputs between two notes of what became of them


def save(folder: Path, files: Files, about: dict[str, Any]) -> None:
    """Keep an input as files, with what became of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "finding.json").write_text(json.dumps(about, indent=1) + "\n")


def peak() -> int:
    """Bytes of the most memory that this process has had; what getrusage tells includes what started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def address_space() -> int:
    """Bytes of the address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limit_memory(target: Target) -> tuple[int, int]:
    """Limit the address space of this process to what it has and a target may add; return the limits before."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + target.memory + target.room, before[1]))
    return before


def place_of(error: BaseException | None) -> str:
    """What was raised and where, so that findings of one cause are known."""
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/tests/fuzz/" not in frame.filename] or frames
    return (
        f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else type(error).__name__
    )


def run(target: Target, seed: int, numbers: range, folder: Path) -> None:
    """Take inputs one after the other; ``at`` in the folder names the one that is on its way."""
    counts: Counter[Outcome] = Counter()
    kinds: Counter[str] = Counter()
    at = os.open(folder / "at", os.O_WRONLY | os.O_CREAT, 0o644)
    limit_memory(target)
    before = peak()
    for number in numbers:
        files = input_of(target, seed, number)
        os.pwrite(at, b"%020d" % number, 0)
        outcome, error = outcome_of(target, files)
        too_much = peak() - before > target.memory
        if too_much:
            outcome = "memory"
        counts[outcome] += 1
        if outcome not in ("accepted", "refused"):
            place = place_of(error) or "over the stated bound"
            kinds[place] += 1
            if kinds[place] <= KEPT:
                told = traceback.format_exception(error) if error else [f"{peak() - before:,} bytes"]
                about = {"target": target.name, "seed": seed, "number": number, "outcome": outcome, "place": place}
                save(folder / f"{outcome}-{number}", files, {**about, "told": "".join(told)[-4000:]})
        if too_much or (number + 1 - numbers.start) % EVERY == 0 or number + 1 == numbers.stop:
            print(json.dumps({"next": number + 1, "counts": counts, "kinds": kinds}), flush=True)
        if too_much:
            return


def main(name: str, seed: str, first: str, last_or_folder: str, *folder: str) -> None:
    """Prepare a target and run it; without ``folder``: keep input ``first`` in a folder, and do not take it."""
    out = os.dup(1)  # what libraries print goes elsewhere
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    memory = Path("/dev/shm")  # each input is a file or several
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work:
        place = Path(work, "target")
        place.mkdir()
        target = named(name)(place)
        if folder:
            stack = Path(folder[0], "stack").open("w")  # noqa: SIM115  # open to the end
            faulthandler.enable(stack)
            faulthandler.register(signal.SIGUSR1, stack, all_threads=True)
            sys.stdout = os.fdopen(out, "w")
            run(target, int(seed), range(int(first), int(last_or_folder)), Path(folder[0]))
            sys.stdout.close()
        else:
            save(Path(last_or_folder), input_of(target, int(seed), int(first)), {"target": name, "seed": int(seed)})
    os._exit(0)  # threads of libraries, which are of no interest


if __name__ == "__main__":
    main(*sys.argv[1:])
