"""Parity: does an artefact give the numbers of the model it was made from?

Raw outputs are compared element by element (pixels and probabilities have limits of their own), and what follows from
them is matched, because that is what a user sees: detections, classes of pixels, grey levels. A report says what was
compared on which input, how far it was off, and how much of its limit it used.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from deploykit.errors import SpecError, UsageError
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.parity.nms import check_detections
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import limits_between
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.files import existing_file
from deploykit.runtime.parity.expected import ParityInputs, ReferenceOutputs, runs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session, open_session
from deploykit.runtime.spec_file import read_spec
from deploykit.spec import CHECKPOINT_SUFFIXES, METADATA_KEY, Dynamic, InputSpec, ModelSpec

__all__ = ["ParityReport", "Tolerance", "check_expected", "compare", "expect"]


def compare(
    a: str | Path | Session,
    b: str | Path | Session,
    *,
    images: Sequence[str | Path] = (),
    spec: ModelSpec | str | Path | None = None,
    tolerance: Tolerance | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Compare two models, ``a`` being the reference: checkpoints, artefacts or sessions.

    Checkpoints are computed in float64, so that only the artefact's rounding counts.

    Args:
        a, b: paths (``.pt``, ``.onnx``, ``.trt``, ...) or open sessions of the same network. ``a`` may also be the
            reference values (``.npz``) that an engine was written with; then the images are those in it.
        images: sample images; none takes the one that ships with deploykit. Seeded noise is always compared too.
        spec: of both, where they carry none (or a JSON file that holds it).
        tolerance: limits; None takes those of the lower precision of the two (docs/precision.md).
        progress: hears which input is being compared.

    Raises:
        SpecError: neither carries a spec. UsageError: their inputs have no size in common.
    """
    given = read_spec(spec)
    with contextlib.ExitStack() as stack:
        if isinstance(a, (str, Path)) and Path(a).suffix.lower() == ".npz":
            expected = ReferenceOutputs.load(existing_file(a, "reference values"))
            second = stack.enter_context(_opened(b))
            chosen = _known(given, second)
        else:
            first, second = stack.enter_context(_opened(a)), stack.enter_context(_opened(b))
            chosen = _known(given, first, second)
            chosen = dataclasses.replace(chosen, input=_common_input(chosen.input, first, second))
            theirs = chosen
            kind = chosen.output.kind  # another one: NMS is inside one of them
            if (own := _carried(first)) and (own.output.kind != kind or _decodes_otherwise(own, chosen)):
                theirs = dataclasses.replace(own, input=chosen.input)
            if (own := _carried(second)) and _decodes_otherwise(own, chosen):
                chosen = dataclasses.replace(own, input=chosen.input)
            feeds = make_parity_inputs(chosen, images).restrict_to(_taker(first)).restrict_to(_taker(second))
            ours = isinstance(a, (str, Path))
            tolerance = tolerance or limits_between(map(_carried, (first, second)))
            expected = expect({_name(a, "a"): first}, theirs, feeds, closing=ours, progress=progress)
        return check_expected(expected.restrict_to(_taker(second)), _name(b, "b"), second, chosen, tolerance, progress)


def _known(given: ModelSpec | None, *sessions: Session) -> ModelSpec:
    """The spec of the last session that carries one, unless one is given."""
    known = given or next((s for s in map(_carried, reversed(sessions)) if s), None)
    if known is None:
        raise SpecError("neither model says what its output means: pass a spec (spec=, or --spec FILE)")
    return known


def _decodes_otherwise(own: ModelSpec, chosen: ModelSpec) -> bool:
    """Whether a model says itself that its rows are in pixels, or are not, where the chosen spec says the opposite."""
    same = own.output.kind == chosen.output.kind
    return same and export_adapter_of(own).decode != export_adapter_of(chosen).decode


def _taker(session: Session) -> Callable[[tuple[int, ...]], bool]:
    """Which input shapes to feed; one of a fixed batch takes any number, one after the other."""
    fixed = session.inputs[0].shape[0]
    return session.accepts_shape if fixed is None else lambda shape: session.accepts_shape((fixed, *shape[1:]))


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
    if not isinstance(model, (str, Path)):
        yield model
    elif Path(model).suffix.lower() in CHECKPOINT_SUFFIXES:
        from deploykit.export.sessions.torch_module import open_torch_session  # artefacts are compared without torch

        with open_torch_session(model, exact=True)[0] as session:
            yield session
    else:
        with open_session(model) as session:
            yield session


def _carried(session: Session) -> ModelSpec | None:
    text = session.metadata.get(METADATA_KEY)
    return None if text is None else ModelSpec.from_json(text)


def expect(
    references: Mapping[str, Session],
    spec: ModelSpec,
    feeds: ParityInputs,
    *,
    once: Collection[str] = (),
    closing: bool = False,
    progress: Progress = SILENT,
) -> ReferenceOutputs:
    """Run the references, one image at a time. Those named in ``once`` run on the first image only.

    Of networks with NMS inside the detections stand for the rows.
    ``closing``: close each reference after its last run, because it may be large.

    Raises:
        SpecError: an output is not what the spec says.
    """
    adapter = export_adapter_of(spec)
    rows: dict[str, dict[str, Array]] = {}
    for reference, session in references.items():
        rows[reference] = {}
        for label in list(feeds.images)[: 1 if reference in once else None]:
            progress.step(f"{reference} on {label}")
            image = feeds.images[label]
            rows[reference][label] = adapter.reference_values(session, image, reference)
        if closing:
            session.close()
    computed = {reference: ", ".join(session.providers) for reference, session in references.items()}
    return ReferenceOutputs(feeds, rows, computed, adapter.compared())


def check_expected(
    expected: ReferenceOutputs,
    name: str,
    candidate: Session,
    spec: ModelSpec,
    tolerance: Tolerance | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Run the candidate on the batches, and compare raw values and detections with what is expected.

    Raises:
        SpecError: an output is not what the spec says. ParityError: another number of rows is expected.
    """
    if spec.output.nms_inside:
        return check_detections(expected, name, candidate, spec, tolerance, progress=progress)
    limits, adapter = tolerance or expected.limits, export_adapter_of(spec)
    found_differences, matchings = [], []
    for batch, reference, rows, found in runs(expected, name, candidate, adapter.runtime.values, progress):
        names = (reference, name, batch.name)
        found_differences += adapter.runtime.differences(names, rows, found, limits)
        matchings += adapter.match(names, rows, found, limits)
    return ParityReport(dict(expected.computed), tuple(found_differences), tuple(matchings), _notes(expected), limits)


def _name(model: str | Path | Session, letter: str) -> str:
    return Path(model).name if isinstance(model, (str, Path)) else f"session {letter}"


def _notes(expected: ReferenceOutputs) -> tuple[str, ...]:
    """A model that ignores its input would agree with anything that ignores it too; say so."""
    feeds = expected.feeds
    outputs = [
        rows
        for by_label in expected.rows.values()
        for label, rows in by_label.items()
        if label in feeds.images and feeds.images[label].shape == feeds.first.shape
    ]
    if len(outputs) > 1 and all(np.allclose(outputs[0], rows, rtol=0, atol=1e-6) for rows in outputs[1:]):
        return (*feeds.notes, "the model gives the same output for different inputs: this comparison says little")
    return feeds.notes
