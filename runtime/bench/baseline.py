"""A benchmark beside one that was kept: slower, faster, or no difference that these runs can show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.errors import DataError, NotFoundError, SlowerError
from deploykit.runtime.bench.noise import FEWEST, Ratio, Verdict, ratio_of_medians
from deploykit.runtime.bench.report import SCHEMA, Benchmark
from deploykit.strict_json import JsonError, read_json

__all__ = ["MARGIN", "PARTS", "BaselineComparison", "check_not_slower", "compare_with_baseline", "read_baseline"]

MARGIN = 0.05
"""The share by which two medians must differ to be called different."""
PARTS = {"model_only": "model only", "end_to_end": "end to end"}
LARGEST = 256 << 20  # bytes: two million runs
SAYS: dict[Verdict, str] = {
    "slower": "slower than the baseline",
    "faster": "faster than the baseline",
    "same": "as fast as the baseline",
    "unsure": "no difference that so many runs can show",
}
BUSY = "no verdict, because the machine was busy"


@dataclass(frozen=True)
class BaselineComparison:
    """Ratios of medians, this benchmark over its baseline, by part, with the verdict of each.

    ``notes`` are what else changed between the two, which the ratios then include. ``busy``: other programs had the
    cores before one of the two, so that nothing is said about the model: the load need not have been the same.
    """

    file: str
    margin: float
    ratios: Mapping[str, Ratio]
    notes: tuple[str, ...] = ()
    busy: bool = False

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """The verdict of each part."""
        return {part: "unsure" if self.busy else ratio.verdict(self.margin) for part, ratio in self.ratios.items()}

    def lines(self) -> list[str]:
        """A sentence for each part."""
        return [
            f"{PARTS[part]}: {ratio} times the median of {self.file}: "
            + (BUSY if self.busy else SAYS[ratio.verdict(self.margin)])
            for part, ratio in self.ratios.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        parts = {
            part: {**ratio.to_dict(), "verdict": self.verdicts[part]} for part, ratio in self.ratios.items()
        }  # fmt: skip
        return {"file": self.file, "margin": self.margin, "busy": self.busy, "parts": parts, "notes": list(self.notes)}


def read_baseline(file: Path) -> dict[str, Any]:
    """Read what ``deploykit bench --json --samples`` printed.

    Raises:
        NotFoundError: the file does not exist. DataError: it is something else, of another version, or without the
        time of every run.
    """
    try:
        facts = read_json(file, most=LARGEST)
    except FileNotFoundError:
        raise NotFoundError(
            f"the baseline {file} does not exist: make it by deploykit bench --json --samples"
        ) from None
    except (OSError, JsonError) as e:
        raise DataError(f"cannot read the baseline {file}: {e}") from e
    if not isinstance(facts, dict) or not {"schema", *PARTS} <= facts.keys():
        raise DataError(f"expected what deploykit bench --json --samples prints, but {file} is something else")
    if facts["schema"] != SCHEMA:
        raise DataError(
            f"the baseline {file} has version {facts['schema']!r} of the format, this deploykit reads {SCHEMA}: "
            "measure it again"
        )
    for part in PARTS:
        _samples(facts, part, file)
    return facts


def compare_with_baseline(
    report: Benchmark, baseline: Mapping[str, Any], *, file: Path, margin: float = MARGIN
) -> BaselineComparison:
    """Compare a benchmark with a baseline that :func:`read_baseline` read.

    Raises:
        DataError: the two cannot be compared: another machine, other images, or another batch.
    """
    now = report.to_dict()
    if other := next(_unlike(now, baseline), None):
        raise DataError(f"{file} cannot be the baseline of this benchmark: {other}; measure both alike, on one machine")
    ratios = {
        part: ratio_of_medians(_samples(baseline, part, file), getattr(report, part).total.samples) for part in PARTS
    }
    load = _load(baseline, report)
    notes = list(_notes(now, baseline, report))
    if busy := load > report.machine.cores:
        notes.append(f"the machine was busy (load {load:.1f} on {report.machine.cores} cores): repeat on an idle one")
    return BaselineComparison(str(file), margin, ratios, tuple(notes), busy)


def _load(baseline: Mapping[str, Any], report: Benchmark) -> float:
    """Return the higher load of the two, of the minute before the first run; 0: the system does not report it."""
    loads = (_of(baseline, "machine", "load"), report.machine.load)
    return max((float(load) for load in loads if isinstance(load, (int, float))), default=0.0)


def check_not_slower(comparison: BaselineComparison) -> None:
    """Refuse a benchmark that is slower than its baseline.

    Raises:
        SlowerError: a part is slower, by more than the margin and by more than noise.
    """
    slower = [part for part, verdict in comparison.verdicts.items() if verdict == "slower"]
    if slower:
        told = ", ".join(f"{PARTS[part]} takes {comparison.ratios[part]} times as long" for part in slower)
        raise SlowerError(
            f"slower than {comparison.file}: {told}; {100 * comparison.margin:g} % are allowed (--tolerance). Measure "
            "again on an idle machine, or accept it with a new baseline"
        )


def _samples(facts: Mapping[str, Any], part: str, file: Path) -> list[float]:
    try:
        values = facts[part]["total_ms"]["samples"]
        if not values or not all(type(value) in (int, float) and value > 0 for value in values):
            raise TypeError
    except (KeyError, TypeError):
        raise DataError(
            f"the baseline {file} lacks the time of every run ({part}): make it by deploykit bench --json --samples"
        ) from None
    return [float(value) for value in values]


def _of(facts: Mapping[str, Any], *keys: str) -> Any:
    value: Any = facts
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _unlike(now: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """What makes a comparison meaningless."""
    for what, *keys in (
        ("the processor", "machine", "processor"),
        ("the number of cores", "machine", "cores"),
        ("the CPU quota", "machine", "core_limit"),
        ("the batch", "batch"),
        ("the number of images", "images", "count"),
        ("the bytes of the images", "images", "bytes"),
    ):
        a, b = _of(before, *keys), _of(now, *keys)
        if a != b:
            yield f"{what} was {a}, now {b}"


def _notes(now: Mapping[str, Any], before: Mapping[str, Any], report: Benchmark) -> Iterator[str]:
    """What else differs: it may be the very thing that is compared."""
    for what, *keys in (
        ("the model", "network", "model"),
        ("the precision", "network", "precision"),
        ("the input shapes", "network", "shapes"),
        ("the providers", "network", "providers"),
        ("the threads", "network", "threads"),
    ):
        a, b = _of(before, *keys), _plain(_of(now, *keys))
        if a != b:
            yield f"{what}: {_short(a)} in the baseline, {_short(b)} now"
    old, new = _of(before, "versions"), now["versions"]
    if isinstance(old, dict):
        changed = [
            f"{name} {old.get(name)} to {new.get(name)}"
            for name in sorted({*old, *new})
            if old.get(name) != new.get(name)
        ]
        if changed:
            yield f"versions: {', '.join(changed)}"
    few = min(len(_of(before, "end_to_end", "total_ms", "samples")), report.runs)
    if few < FEWEST:
        yield f"{few} runs are too few for a verdict: at least {FEWEST} on both sides (--runs, --duration)"


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def _short(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
