"""Output shared by the commands: progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import unicodedata
from collections.abc import Iterator
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

from deploykit.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.table import Table

    from deploykit.export.matching import Matching
    from deploykit.export.parity.report import ParityReport

WIDTH = 110  # of tables if stdout is not a terminal
ESCAPED = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of surrogate pairs, ends of lines and paragraphs
SILENCE = 10.0  # seconds after which a step that takes long says how far it is
BETWEEN_REFRESHES = 0.25  # seconds, if the caller draws the bar and not a thread of its own


def console() -> Console:
    """Return the console for results; plain text of a fixed width when stdout is a file or a pipe.

    Printed text is markup: foreign text such as a path goes through ``rich.markup.escape``.
    """
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, soft_wrap=False)


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a line at once on ``file``, by default stdout.

    ``print`` writes the end of a line by itself: a signal or another thread between the two leaves a line that the next
    one continues.
    """
    stream = sys.stdout if file is None else file
    stream.write(f"{text}\n")
    stream.flush()


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout; with ``indent`` of None on one line.

    What stdout cannot encode is escaped as JSON does it, so that the document stays valid.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # another encoding than UTF-8, or bytes of a file name that are no text
        text = json.dumps(value, indent=indent, default=str)
    print_line(text)


def printable(text: str) -> str:
    """Return the text with escapes (``\\x1b``, ``\\udce9``) for what ends a line, steers a terminal, or is no text."""
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in ESCAPED else c for c in text)


@contextlib.contextmanager
def every_text_printable() -> Iterator[None]:
    """Let stdout and stderr escape what their encoding lacks while the context lasts, instead of raising an error."""
    before = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if isinstance(stream, TextIOWrapper)]
    for stream, _ in before:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in before:
            with contextlib.suppress(ValueError):  # closed meanwhile
                stream.reconfigure(errors=errors)


class _Notes(logging.Handler):
    """Prints each logged message once, as one line on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(" ".join(record.getMessage().split()))
        if text not in self._seen:
            self._seen.add(text)
            kind = "note" if record.levelno >= logging.WARNING else record.levelname.lower()
            print_line(f"deploykit: {kind}: {text}", sys.stderr)


@contextlib.contextmanager
def notes_on_stderr(level: int = logging.WARNING) -> Iterator[None]:
    """Show what the logger ``deploykit`` says at ``level`` and above to the user while the context lasts."""
    from deploykit.runtime.images.decoder_messages import listen_to_decoders

    handler, logger = _Notes(), logging.getLogger("deploykit")
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        with listen_to_decoders():  # the error stream is the command's own
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def quiet() -> bool:
    """Whether only errors are to be printed besides results (``--quiet``)."""
    return not logging.getLogger("deploykit").isEnabledFor(logging.WARNING)


def aside(text: str) -> None:
    """Print what is not a result, on stderr; with ``--quiet`` nothing."""
    if not quiet():
        print_line(text, sys.stderr)


def note(text: str) -> None:
    """Show a note to the user, unless the library has logged the same one."""
    logging.getLogger(__name__).warning("%s", text)


class Pace:
    """How long a step will still take, from the shares that it reports and the time since it began."""

    def __init__(self) -> None:
        self._began = self._last_step = time.perf_counter()
        self._share = 1.0

    def step(self) -> None:
        """A step, or a detail of one, begins."""
        self._last_step = time.perf_counter()

    def left(self, done: float) -> str:
        """Return how much longer it takes to the end, given the share that is done; empty: it cannot be told."""
        if done <= self._share:  # another count of shares, which began with the last step
            self._began = self._last_step
        self._share = done
        seconds = time.perf_counter() - self._began
        if done <= 0 or seconds < 1:
            return ""
        left = seconds * (1 - done) / done
        return f"about {left:.0f} s left" if left < 120 else f"about {left / 60:.0f} min left"


class StepLines(Progress):
    """Prints a line per step on stderr, and where a step takes long how far it is, after some seconds of silence."""

    def __init__(self) -> None:
        self._start = self._said = time.perf_counter()
        self._pace = Pace()
        self._seen: set[str] = set()

    def step(self, name: str) -> None:
        """See :meth:`Progress.step`; a step's details get no line of their own while lines come often enough."""
        self._pace.step()
        known = name.split(":", maxsplit=1)[0]
        if known not in self._seen:
            self._seen.add(known)
            self._say(known)
        elif name != known:
            self._say_late(name)

    def share(self, what: str, done: float) -> None:
        """See :meth:`Progress.share`."""
        left = self._pace.left(done)
        self._say_late(f"{what}: {100 * done:.0f} %{', ' * bool(left)}{left}")

    def message(self, text: str) -> None:
        """See :meth:`Progress.message`."""
        print_line(f"deploykit: note: {text}", sys.stderr)

    def _say_late(self, text: str) -> None:
        if time.perf_counter() - self._said >= SILENCE:
            self._say(text)

    def _say(self, text: str) -> None:
        self._said = time.perf_counter()
        print_line(f"[{self._said - self._start:6.1f} s] {text}", sys.stderr)


class StepBar(Progress):
    """Shows one bar on a terminal: the running step, and its progress if the step reports it.

    Args:
        bar: the progress bar of rich.
        refresh: draw the bar from the calls, a few times per second, because it has no thread of its own.
    """

    def __init__(self, bar: RichProgress, *, refresh: bool) -> None:
        self._bar, self._refresh, self._drawn = bar, refresh, 0.0
        self._pace = Pace()
        self._task = bar.add_task("starting", total=None)

    def step(self, name: str) -> None:
        """See :meth:`Progress.step`."""
        from rich.markup import escape

        self._pace.step()
        self._bar.tasks[0].total = None  # unknown duration; update() takes None for no change
        self._bar.update(self._task, description=escape(name), completed=0)
        self._draw(at_once=True)

    def share(self, what: str, done: float) -> None:
        """See :meth:`Progress.share`."""
        from rich.markup import escape

        left = self._pace.left(done)
        self._bar.update(self._task, description=escape(f"{what}{', ' * bool(left)}{left}"), total=1.0, completed=done)
        self._draw(at_once=False)

    def message(self, text: str) -> None:
        """See :meth:`Progress.message`."""
        self._bar.console.print(f"deploykit: note: {text}", markup=False, highlight=False)

    def _draw(self, *, at_once: bool) -> None:
        if self._refresh and (at_once or time.perf_counter() - self._drawn > BETWEEN_REFRESHES):
            self._bar.refresh()
            self._drawn = time.perf_counter()


@contextlib.contextmanager
def shown_progress(*, threaded: bool = True) -> Iterator[Progress]:
    """Yield the listener that a command passes on: a bar on a terminal, else one line per step, on stderr.

    Args:
        threaded: draw the bar from a thread of its own; False draws it only during calls, so that it takes no time from
            the measurement in between.
    """
    from rich.console import Console  # also if no bar is shown: the result needs it

    if quiet():
        yield Progress()
        return
    if not sys.stderr.isatty():
        yield StepLines()
        return
    from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    share = TaskProgressColumn("{task.percentage:>3.0f} %")
    moving = (SpinnerColumn(), TimeElapsedColumn()) if threaded else ()
    columns = (*moving[:1], TextColumn("{task.description}"), BarColumn(), share, *moving[1:])
    with RichProgress(*columns, console=Console(stderr=True), auto_refresh=threaded, transient=True) as bar:
        yield StepBar(bar, refresh=not threaded)


def parity_table(report: ParityReport) -> Table:
    """Build the table of the largest difference per kind of value, and of the detections; the JSON report has all."""
    from rich.markup import escape
    from rich.table import Table

    judged = report.tolerance.judged
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("parity" if judged else "agreement")
    table.add_column("largest difference", justify="right")
    table.add_column("of the limit" if judged else "", justify="right")
    table.add_column("where")
    for values in dict.fromkeys(d.values for d in report.differences):
        d = max((d for d in report.differences if d.values == values), key=lambda d: d.limit_ratio)
        in_pixels = values in ("boxes", "keypoints") and not d.dense
        largest = f"{d.max_abs:.2g} px" if in_pixels else f"{d.max_abs:.2g}"
        where = escape(f"{d.input}, against {d.reference}")
        table.add_row(_verdict(values, d.ok), largest, f"{100 * d.limit_ratio:.1f} %" if judged else "", where)
    for what in dict.fromkeys(m.what for m in report.matchings):
        parts = [m for m in report.matchings if m.what == what]
        worst = min(parts, key=lambda m: (m.ok, m.min_iou, m.min_mask or 0.0))
        matched, expected = sum(m.matched for m in parts), sum(m.expected for m in parts)
        none = expected == 0 and not any(m.found for m in parts)
        total, overlap = ("none", "") if none else (f"{matched:,} of {expected:,} match", _how_near(worst))
        table.add_row(_verdict(what, worst.ok or not judged), total, overlap, f"{len(parts)} comparisons")
    return table


def _how_near(matching: Matching) -> str:
    if matching.what == "grey levels":
        return "within 1"
    if matching.what == "values":
        return "within their limits"
    if matching.what == "classes":
        return f"p +- {matching.max_score:.1g}"
    masks = "" if matching.min_mask is None else f", of masks {matching.min_mask:.4f}"
    return f"IoU >= {matching.min_iou:.4f}{masks}"


def parity_lines(report: ParityReport) -> list[str]:
    """Return what was compared with what, the limits, and the notes."""
    limits = report.tolerance
    references = [f"{name} ({computed})" for name, computed in report.references.items()]
    inputs = list(dict.fromkeys([d.input for d in report.differences] + [m.input for m in report.matchings]))
    notes = [*_order_of(report), *(f"note: {note}" for note in report.notes)]
    relative = f"{limits.side:g} of the longer side" if limits.side else f"{limits.relative:g} |x|"
    scoring = f", in rows that score over {limits.min_score:g}" if limits.min_score else ""
    if not limits.judged:
        return [
            f"compared with {' and '.join(references)} on {_some(inputs)}{scoring}",
            "reported only: no limit per value tells whether a quantized network is good; its accuracy does "
            "(--max-drop, deploykit eval --against)",
            *notes,
        ]
    told = f"limits: {limits.pixels:g} px + {relative}, probabilities {limits.probability:g}{scoring}"
    if limits.pixels == float("inf"):  # of int8 and fp8, where results are judged and not each value
        told = (
            f"limits: {limits.unmatched:.0%} of the results may have no partner, IoU at least {limits.min_iou:g}, "
            f"scores within {limits.max_score:g}{scoring}; an output without results: half of its root mean square"
        )
    elif report.differences and all(d.dense for d in report.differences):
        told = f"limit: {limits.dense:g} of the largest value, or of 1 if that is larger"
    lines = [f"compared with {' and '.join(references)} on {_some(inputs)}", told]
    few = list(dict.fromkeys(m.input for m in report.matchings if m.what == "best rows"))
    if few:
        lines.append(
            f"fewer than 20 detections, or mostly borderline ones, on {_some(few)}: "
            "the 100 best rows were compared as well"
        )
    return [*lines, *notes]


def _order_of(report: ParityReport) -> list[str]:
    """Return what became of the order of detections that a network chooses itself; nothing where it stayed."""
    moved, exchanged = (sum(getattr(m, name) for m in report.matchings) for name in ("moved", "exchanged"))
    if not moved and not exchanged:
        return []
    total = sum(m.expected for m in report.matchings)
    return [
        f"detections are compared as sets: of {total:,}, {moved:,} have another rank, and {exchanged:,} at the end of "
        "a full list are others of equal scores; rounding decides both"
    ]


def _some(names: list[str]) -> str:
    """Return all names, or the first and the number of the others if there are more than four."""
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} and {len(names) - 1} other inputs"


def _verdict(name: str, ok: bool) -> str:
    return name if ok else f"[bold red]{name} FAILED[/bold red]"
