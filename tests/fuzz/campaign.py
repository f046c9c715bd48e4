"""A long run: workers are started, watched, and started again behind an input that ended one."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.target import TARGETS

__all__ = ["Limits", "Tally", "fuzzed", "shares", "table"]

ROOT = Path(__file__).resolve().parents[2]
STRETCH = 5_000  # inputs of one process; what it leaks must not count as one input's
COLUMNS = ("inputs", "refused", "accepted", "crash", "hang", "memory")
HEADINGS = ("inputs", "errors of the tree", "accepted", "crashes", "hangs", "over memory")


@dataclass(frozen=True)
class Limits:
    """How long one input may take: seconds of the processor, and seconds in which it may also wait."""

    seconds: float = 10.0
    waiting: float = 60.0


@dataclass
class Tally:
    """What became of the inputs of a target, and what it cost."""

    counts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    next: int = 0
    cpu: float = 0.0

    @property
    def findings(self) -> int:
        """The number of inputs that were no success."""
        return sum(self.counts[name] for name in ("crash", "hang", "memory"))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, as it is kept for the next launch."""
        return {"next": self.next, "cpu": round(self.cpu, 1), "counts": self.counts, "kinds": self.kinds}

    @staticmethod
    def of(file: Path) -> Tally:
        """Return what an earlier launch has kept; none: an empty one."""
        if not file.exists():
            return Tally()
        kept = json.loads(file.read_text())
        return Tally(Counter(kept["counts"]), Counter(kept["kinds"]), kept["next"], kept["cpu"])


def shares(names: list[str], inputs: int) -> dict[str, int]:
    """Return how many of the inputs each target gets."""
    whole = sum(TARGETS[name] for name in names)
    return {name: max(1, round(inputs * TARGETS[name] / whole)) for name in names}


def fuzzed(
    wanted: dict[str, int], seed: int, out: Path, *, jobs: int = 1, limits: Limits = Limits()
) -> dict[str, Tally]:
    """Take so many inputs of each target, together with those that earlier launches took with the same seed.

    Args:
        wanted: target -> number of inputs.
        seed: of all inputs.
        out: the folder of findings and of what was done.
        jobs: processes at a time.
        limits: of one input.
    """
    out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        done = pool.map(lambda name: _one(name, wanted[name], seed, out, limits), wanted)
        return dict(zip(wanted, done, strict=True))


def _one(name: str, inputs: int, seed: int, out: Path, limits: Limits) -> Tally:
    kept = out / f"{name}-{seed}.json"
    tally = Tally.of(kept)
    while tally.next < inputs:
        _stretch(name, min(inputs, tally.next + STRETCH), seed, out / f"{name}-{seed}", tally, limits)
        temporary = kept.with_suffix(".partial")
        temporary.write_text(json.dumps(tally.to_dict(), indent=1) + "\n")
        temporary.replace(kept)
    return tally


def _stretch(name: str, last: int, seed: int, folder: Path, tally: Tally, limits: Limits) -> None:
    """Run one process to its end, and count what it did and what ended it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "at").unlink(missing_ok=True)
    words = [sys.executable, "-m", "tests.fuzz.worker", name, str(seed), str(tally.next), str(last), str(folder)]
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        told, stopped, cpu = _watched(process, folder, limits)
    tally.cpu += cpu
    tally.counts.update(told.get("counts", {}))
    tally.kinds.update(told.get("kinds", {}))
    reached = int(told.get("next", tally.next))
    tally.counts["inputs"] += reached - tally.next
    tally.next = reached
    if process.returncode == 0 and not stopped:
        return
    number = _at(folder)
    if number is None:
        raise RuntimeError(f"the worker of {name} ended with {process.returncode} before its first input")
    # What it did after its last note is done again by nobody: all of it was taken without a finding, or is kept.
    outcome = "hang" if stopped else "crash"
    tally.counts[outcome] += 1
    tally.counts["refused or accepted"] += number - tally.next
    tally.counts["inputs"] += number + 1 - tally.next
    tally.next = number + 1
    place = (
        f"{outcome}: ended by signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
    )
    tally.kinds[place] += 1
    words = [
        sys.executable,
        "-m",
        "tests.fuzz.worker",
        name,
        str(seed),
        str(number),
        str(folder / f"{outcome}-{number}"),
    ]
    subprocess.run(words, cwd=ROOT, check=True, timeout=300)
    (folder / f"{outcome}-{number}" / "stack.txt").write_text((folder / "stack").read_text())


def _watched(process: subprocess.Popen[bytes], folder: Path, limits: Limits) -> tuple[dict[str, Any], bool, float]:
    """Return the worker's last note, whether it was stopped because of its time, and its seconds of the processor."""
    assert process.stdout is not None
    told: dict[str, Any] = {}
    number, began, spent, cpu = None, time.monotonic(), 0.0, 0.0
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        while True:
            if waiting.select(0.5):
                line = process.stdout.readline()
                if not line:
                    return told, False, cpu
                told = json.loads(line)
            cpu = _cpu_seconds(process.pid) or cpu
            found = _at(folder)
            if found != number:
                number, began, spent = found, time.monotonic(), cpu
            elif number is not None and (cpu - spent > limits.seconds or time.monotonic() - began > limits.waiting):
                process.send_signal(signal.SIGUSR1)  # where it is
                time.sleep(0.5)
                process.kill()
                return told, True, cpu


def _at(folder: Path) -> int | None:
    try:
        return int((folder / "at").read_text())
    except (OSError, ValueError):
        return None


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def table(done: dict[str, Tally]) -> str:
    """Return what became of the inputs as a table."""
    rows = [["target", *HEADINGS, "CPU s"]]
    for name in sorted(done, key=list(TARGETS).index):
        rows.append([name, *(f"{done[name].counts[column]:,}" for column in COLUMNS), f"{done[name].cpu:,.0f}"])
    sums = Counter[str]()
    for tally in done.values():
        sums.update(tally.counts)
    rows.append(
        ["all", *(f"{sums[column]:,}" for column in COLUMNS), f"{sum(each.cpu for each in done.values()):,.0f}"]
    )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(widths[0]) if i == 0 else cell.rjust(widths[i]) for i, cell in enumerate(row))
        for row in rows
    )
