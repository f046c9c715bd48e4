"""Parity: does an artefact give the numbers of the model it was made from?

Raw outputs are compared element by element (pixels and probabilities have limits of their own), and the detections
that follow from them are matched, because that is what a user sees. A report says what was compared on which input,
how far it was off, and how much of its limit it used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import ParityError, SpecError, UsageError
from deploykit.export.feeds import Batch, Feeds, make_feeds
from deploykit.export.matching import Matching, match
from deploykit.runtime.session import Array, Session
from deploykit.spec import METADATA_KEY, Dynamic, InputSpec, ModelSpec, RawRows

__all__ = ["Difference", "ParityReport", "Tolerance", "check_parity", "compare"]


@dataclass(frozen=True)
class Tolerance:
    """Limits of fp32: pixels may differ by ``pixels + relative * |x|``, probabilities by ``probability``."""

    pixels: float = 1e-3
    relative: float = 1e-5
    probability: float = 1e-5


@dataclass(frozen=True)
class Difference:
    """How far one kind of value of the candidate is from the reference's on one input.

    ``used`` is the largest share of its limit that any element used: over 1 is a failure. ``worst`` is that element:
    (row, column, expected, found).
    """

    reference: str
    candidate: str
    input: str
    values: str
    count: int
    max_abs: float
    used: float
    worst: tuple[int, int, float, float]

    @property
    def ok(self) -> bool:
        """Whether every element is within its limit."""
        return self.used <= 1.0

    def __str__(self) -> str:
        row, column, expected, found = self.worst
        return (
            f"{self.values} of {self.candidate} differ from {self.reference} on {self.input} by up to "
            f"{self.max_abs:.3g} ({self.used:.3g} of the limit): row {row}, column {column} is {found:.6g}, "
            f"expected {expected:.6g}"
        )


@dataclass(frozen=True)
class ParityReport:
    """Everything that was compared. ``references``: their names and what computed them. ``ok`` is the verdict."""

    references: dict[str, str]
    differences: tuple[Difference, ...]
    matchings: tuple[Matching, ...]
    notes: tuple[str, ...] = ()
    tolerance: Tolerance = field(default_factory=Tolerance)

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its limits."""
        return all(d.ok for d in self.differences) and all(m.ok for m in self.matchings)

    @property
    def worst(self) -> Difference | Matching | None:
        """The first failure, raw values before detections, the largest first; None if there is none."""
        bad = sorted((d for d in self.differences if not d.ok), key=lambda d: -d.used)
        return bad[0] if bad else next((m for m in self.matchings if not m.ok), None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; the parity report file beside an artefact is this. JSON has no NaN: it becomes the word."""
        data = dataclasses.asdict(self)
        for entry, difference in zip(data["differences"], self.differences, strict=True):
            entry["ok"] = difference.ok
        for entry, matching in zip(data["matchings"], self.matchings, strict=True):
            entry["ok"] = matching.ok
        worded: dict[str, Any] = _worded({"ok": self.ok, **data})
        return worded

    def to_json(self) -> str:
        """The text of the parity report file."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def raise_if_bad(self, artefact: str) -> None:
        """Turn a failed report into an error that names the worst output.

        Raises:
            ParityError: something is beyond its limit.
        """
        if self.worst is not None:
            raise ParityError(f"{artefact} does not agree with its source and was not kept: {self.worst}")


def compare(
    a: str | Path | Session,
    b: str | Path | Session,
    *,
    images: Sequence[str | Path] = (),
    spec: ModelSpec | str | Path | None = None,
    tolerance: Tolerance | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> ParityReport:
    """Compare two models, ``a`` being the reference: checkpoints, artefacts or sessions.

    Checkpoints are computed in float64, so that only the artefact's rounding counts.

    Args:
        a, b: paths (``.pt``, ``.onnx``, ...) or open sessions of the same network.
        images: sample pictures; none takes the one that ships with deploykit. Seeded noise is always compared too.
        spec: of both, where they carry none (or a JSON file that holds it).
        tolerance: limits; None takes those of fp32.
        on_step: told which input is being compared.

    Raises:
        SpecError: neither carries a spec. UsageError: their inputs have no size in common.
    """
    from deploykit.facade import read_spec

    given = read_spec(spec)
    with _opened(a) as first, _opened(b) as second:
        specs = [given or _carried(session) for session in (first, second)]
        known = next((s for s in reversed(specs) if s), None)
        if known is None:
            raise SpecError("neither model says what its output means: pass a spec (spec=, or --spec FILE)")
        chosen = dataclasses.replace(known, input=_common_input(known.input, first, second))
        feeds = make_feeds(chosen, images)
        return check_parity(
            {_name(a, "a"): first},
            _name(b, "b"),
            second,
            chosen,
            feeds,
            tolerance,
            closing=isinstance(a, (str, Path)),
            on_step=on_step,
        )


def _common_input(canvas: InputSpec, first: Session, second: Session) -> InputSpec:
    """What both sessions take, by their own word: a spec may come from the other one, or from a file."""
    for session in (first, second):
        if len(session.inputs) != 1 or len(session.inputs[0].shape) != 4:
            found = ", ".join(f"{info.name} {info}" for info in session.inputs) or "none"
            raise SpecError(f"expected one input (batch, channels, height, width), but the model's are: {found}")
    sides = [session.inputs[0].shape[2:] for session in (first, second)]
    fixed = {(height, width) for height, width in sides if height is not None and width is not None}
    if len(fixed) > 1:
        raise UsageError(f"the two models have fixed input sizes that differ: {' and '.join(map(str, sorted(fixed)))}")
    batch = second.inputs[0].shape[0]
    dynamic: Dynamic = "shape" if not fixed else "batch" if batch is None else "none"
    return dataclasses.replace(canvas, size=next(iter(fixed), canvas.size), batch=batch or 1, dynamic=dynamic)


@contextlib.contextmanager
def _opened(model: str | Path | Session) -> Iterator[Session]:
    """A session that is closed afterwards, unless it is the caller's own; a checkpoint is computed in float64."""
    from deploykit.facade import CHECKPOINT_SUFFIXES, open_session

    if not isinstance(model, (str, Path)):
        yield model
    elif Path(model).suffix.lower() in CHECKPOINT_SUFFIXES:
        from deploykit.export.torch_session import open_torch_session

        with open_torch_session(model, exact=True)[0] as session:
            yield session
    else:
        with open_session(model) as session:
            yield session


def _carried(session: Session) -> ModelSpec | None:
    text = session.metadata.get(METADATA_KEY)
    return None if text is None else ModelSpec.from_json(text)


def check_parity(
    references: Mapping[str, Session],
    name: str,
    candidate: Session | Callable[[], Session],
    spec: ModelSpec,
    feeds: Feeds,
    tolerance: Tolerance | None = None,
    *,
    once: Collection[str] = (),
    closing: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> ParityReport:
    """Run everything on everything. References see one image at a time, the candidate sees the feeds' batches.

    So a slot that is mixed up, or an image that leaks into another slot, shows as a difference. References named in
    ``once`` run on the first image only. ``closing``: close each reference after its last run, because it may be large;
    for the same reason the candidate may be a function, which is called when the references are done.

    Raises:
        SpecError: an output is not what the spec says. ParityError: the two give different numbers of rows.
    """
    if not isinstance(spec.output, RawRows):
        raise UsageError(f"parity is checked on raw rows, not on outputs of kind {spec.output.kind!r}")
    limits = tolerance or Tolerance()
    layout, differences, matchings = spec.output, [], []
    expected: dict[tuple[str, str], Array] = {}
    for reference, session in references.items():
        for label in list(feeds.images)[: 1 if reference in once else None]:
            on_step(f"{reference} on {label}")
            expected[reference, label] = _run_one(session, feeds.images[label], layout, reference)
        if closing:
            session.close()
    opened = candidate() if callable(candidate) else candidate
    for batch in feeds.batches:
        on_step(f"{name} on {batch.name}")
        found = _run_batch(opened, batch, feeds, layout, name)
        for reference in references:
            if all((reference, label) in expected for label in batch.images):
                rows = [expected[reference, label] for label in batch.images]
                differences += _differences(reference, name, batch.name, rows, found, layout, limits)
                matchings += match(reference, name, batch, rows, found, spec, limits.probability)
    computed = {reference: ", ".join(session.providers) for reference, session in references.items()}
    return ParityReport(computed, tuple(differences), tuple(matchings), _notes(feeds, expected), limits)


def _worded(value: Any) -> Any:
    """The same with words for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _worded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_worded(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _name(model: str | Path | Session, letter: str) -> str:
    return Path(model).name if isinstance(model, (str, Path)) else f"session {letter}"


def _run_one(session: Session, image: Array, layout: RawRows, name: str) -> Array:
    """One image's rows ``(N, columns)``; a session with a fixed batch gets the image in every slot."""
    info = session.inputs[0]
    batch = info.shape[0] or 1
    rows: Array = _rows(session.run({info.name: np.repeat(image, batch, 0)}), layout, name)[0]
    return rows


def _run_batch(session: Session, batch: Batch, feeds: Feeds, layout: RawRows, name: str) -> list[Array]:
    info = session.inputs[0]
    blob = np.concatenate([feeds.images[label] for label in batch.images])
    fixed = info.shape[0]
    if fixed is None or fixed == len(blob):
        return list(_rows(session.run({info.name: blob}), layout, name))
    return [_run_one(session, image[None], layout, name) for image in blob]


def _rows(outputs: Mapping[str, Array], layout: RawRows, name: str) -> Array:
    """The output of the spec's name, or the only one: somebody else's export may call it otherwise."""
    if layout.name not in outputs and len(outputs) > 1:
        raise SpecError(f"{name} has no output {layout.name!r}, which the spec names; it has {', '.join(outputs)}")
    rows = outputs.get(layout.name, next(iter(outputs.values())))
    if rows.ndim != 3 or rows.shape[2] < layout.columns:
        raise SpecError(f"the spec says (batch, rows, {layout.columns} columns), the output of {name} is {rows.shape}")
    return rows


def _value_columns(layout: RawRows) -> dict[str, tuple[list[int], bool]]:
    """Kind of value -> (its columns, whether they are pixels)."""
    scores = [*range(*layout.cls)] if layout.obj is None else [*range(*layout.obj), *range(*layout.cls)]
    columns = {"boxes": ([*range(*layout.box)], True), "scores": (scores, False)}
    if layout.keypoints:
        start, stop = layout.keypoints
        points = range(start, stop)
        columns["keypoints"] = ([c for c in points if (c - start) % layout.kpt_dims < 2], True)
        if layout.kpt_dims > 2:
            columns["visibility"] = ([c for c in points if (c - start) % layout.kpt_dims >= 2], False)
    return columns


def _differences(
    reference: str, name: str, label: str, rows: list[Array], found: list[Array], layout: RawRows, limits: Tolerance
) -> list[Difference]:
    a, b = np.concatenate(rows).astype(np.float64), np.concatenate(found).astype(np.float64)
    if a.shape != b.shape:
        raise ParityError(f"{name} gives {b.shape} values on {label}, {reference} gives {a.shape}")
    report = []
    for values, (columns, pixels) in _value_columns(layout).items():
        expected, got = a[:, columns], b[:, columns]
        limit = limits.pixels + limits.relative * np.abs(expected) if pixels else limits.probability
        error = np.abs(expected - got)
        # NaN or infinity on either side is never equal to anything.
        error[~(np.isfinite(expected) & np.isfinite(got))] = np.inf
        used = error / limit
        row, column = np.unravel_index(int(used.argmax()), used.shape)
        worst = (int(row), columns[int(column)], float(expected[row, column]), float(got[row, column]))
        report.append(
            Difference(reference, name, label, values, error.size, float(error.max()), float(used.max()), worst)
        )
    return report


def _notes(feeds: Feeds, expected: Mapping[tuple[str, str], Array]) -> tuple[str, ...]:
    """A model that ignores its input would agree with anything that ignores it too; say so."""
    outputs = [rows for (_, label), rows in expected.items() if feeds.images[label].shape == feeds.first.shape]
    if len(outputs) > 1 and all(np.allclose(outputs[0], rows, rtol=0, atol=1e-6) for rows in outputs[1:]):
        return (*feeds.notes, "the model gives the same output for different inputs: this comparison says little")
    return feeds.notes
