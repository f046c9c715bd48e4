"""The printed comparison of two models, for ``deploykit eval --against`` and ``deploykit export --max-drop``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.cli._display import console

if TYPE_CHECKING:
    from deploykit.runtime.evaluate.compare import AccuracyComparison, Comparison


def print_comparison(found: Comparison, reference: str, *, per_class: bool) -> None:
    """Print both models' metrics, which are fractions, in points, their difference, and the interval of detectors."""
    from rich.table import Table

    from deploykit.runtime.evaluate.compare import AccuracyComparison

    detected = found if isinstance(found, AccuracyComparison) else None
    intervals = detected.intervals if detected else {}
    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("points")
    for head in ("model", "against", "difference", *(["95 % interval"] if intervals else [])):
        table.add_column(head, justify="right")
    for name, difference in found.difference.items():
        values = [f"{100 * e.metrics[name]:.2f}" for e in (found.model, found.reference)]
        interval = []
        if intervals:
            ends = intervals.get(name)
            interval = ["" if ends is None else f"{100 * ends[0]:+.2f} to {100 * ends[1]:+.2f}"]
        table.add_row(name, *values, f"{100 * difference:+.2f}", *interval)
    out.print()
    out.print(table)
    drawn = ""
    if detected and intervals:
        drawn = f"; intervals: {detected.samples} draws of {detected.model.counts.images} images"
    out.print(f"points are hundredths; against {reference}{drawn}", markup=False)
    speeds = [e.timings.get("inference", 0.0) for e in (found.model, found.reference)]
    if all(speeds):
        out.print(
            f"its inference took {speeds[0] / speeds[1]:.2f} times as long here (run one after the other: deploykit "
            "bench measures)",
            markup=False,
        )
    if per_class and detected is not None and detected.per_class:
        _print_classes(detected)


def _print_classes(found: AccuracyComparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    out = console()
    classes = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("class", "AP model", "AP against", "difference"):
        classes.add_column(head, justify="left" if head == "class" else "right")
    for name, difference in sorted(found.per_class.items(), key=lambda item: item[1]):
        values = [f"{100 * e.per_class[name].ap:.2f}" for e in (found.model, found.reference)]
        classes.add_row(escape(name), *values, f"{100 * difference:+.2f}")
    out.print()
    out.print(classes)
