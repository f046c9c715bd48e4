"""Comparison of two models: raw outputs value by value, and the results that follow from them.

Raw outputs are compared element by element, with separate tolerances for pixels and probabilities. Results are matched,
because they are what a user sees: detections, classes of pixels, grey levels. A report says what was compared on which
input, how large the difference was, and how much of the tolerance it used.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.errors import SpecError, UsageError
from deploykit.export.outputs import ExportAdapter, export_adapter_of
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.parity.nms import check_detections
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import limits_between
from deploykit.export.sessions.fed import FedSession, image_input
from deploykit.models.load_options import LoadOptions
from deploykit.progress import SILENT, Progress, Within
from deploykit.runtime.arrays import Array
from deploykit.runtime.compute import ComputeOptions
from deploykit.runtime.files import existing_file
from deploykit.runtime.foreign.draft import takes_images
from deploykit.runtime.model_spec import known_spec
from deploykit.runtime.parity.expected import ParityInputs, ReferenceOutputs, runs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session, for_checkpoints, is_checkpoint, open_session
from deploykit.runtime.spec_file import read_spec
from deploykit.spec import ENGINE_SUFFIXES, Dynamic, InputSpec, ModelSpec

__all__ = ["Given", "Pair", "ParityReport", "Tolerance", "check_expected", "compare", "expect", "prepared"]


def compare(
    a: str | Path | Session,
    b: str | Path | Session,
    *,
    images: Sequence[str | Path] = (),
    spec: ModelSpec | str | Path | None = None,
    tolerance: Tolerance | None = None,
    loading: LoadOptions | None = None,
    device: str | int | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Compare two models; ``a`` is the reference.

    Checkpoints are computed in float64, so that only the artefact's rounding counts.

    Args:
        a, b: paths (``.pt``, ``.onnx``, ``.trt``, ...) or open sessions of the same network; each gets the same images,
            with the channels last if it takes them so. ``a`` may also be the reference values (``.npz``) beside an
            engine; then the images are those in it.
        images: sample images; none takes the one that ships with deploykit. Seeded noise is always compared too.
        spec: the spec of both models, if they carry none, or a JSON file that holds it.
        tolerance: None takes the tolerance of the lower of the two precisions (docs/precision.md).
        loading: how those of the two that are checkpoints are loaded.
        device, threads: what computes those of the two that are exports, and with how many CPU threads: see
            :class:`deploykit.runtime.compute.ComputeOptions`. Checkpoints are computed on the CPU.
        progress: receives the input that is being compared.

    Raises:
        SpecError: neither carries a spec. UsageError: their inputs have no size in common.
    """
    how = Given(images, read_spec(spec), tolerance, loading, ComputeOptions(device, threads))
    with prepared(a, b, how, progress=progress) as pair:
        return check_expected(pair.expected, pair.name, pair.candidate, pair.spec, pair.tolerance, progress)


@dataclass(frozen=True)
class Given:
    """How two models are compared, as the arguments of :func:`compare` say it; the spec has been read."""

    images: Sequence[str | Path] = ()
    spec: ModelSpec | None = None
    tolerance: Tolerance | None = None
    loading: LoadOptions | None = None
    compute: ComputeOptions = field(default_factory=ComputeOptions)


@dataclass(frozen=True)
class Pair:
    """Two models that are about to be compared: the reference's values, and the open candidate with its spec.

    ``tolerance`` is None where the reference is a file of values, which has its own.
    """

    expected: ReferenceOutputs
    name: str
    candidate: Session
    spec: ModelSpec
    tolerance: Tolerance | None


@contextlib.contextmanager
def prepared(
    a: str | Path | Session,
    b: str | Path | Session,
    how: Given,
    *,
    more: Callable[[ParityInputs, ModelSpec], ParityInputs] | None = None,
    progress: Progress = SILENT,
) -> Iterator[Pair]:
    """Run the reference ``a``, and yield what ``b`` is compared with; errors as in :func:`compare`.

    ``more`` adds images, for the spec that is compared.
    """
    given, tolerance, compute = how.spec, how.tolerance, how.compute
    ways = for_checkpoints((a, b), how.loading)
    if compute.device is not None and not any(isinstance(m, (str, Path)) and not is_checkpoint(m) for m in (a, b)):
        raise UsageError("device is for exports, and none of the two models is opened here as one")
    with contextlib.ExitStack() as stack:
        if isinstance(a, (str, Path)) and Path(a).suffix.lower() == ".npz":
            expected = ReferenceOutputs.load(existing_file(a, "reference values"))
            second = _channels_first(stack.enter_context(_open(b, ways[1], compute)))
            chosen = _resolve_spec(given, known_spec(second, _name(b, "b")))
        else:
            first, second = (
                _channels_first(stack.enter_context(_open(model, way, compute)))
                for model, way in zip((a, b), ways, strict=True)
            )
            own = known_spec(first, _name(a, "a")), known_spec(second, _name(b, "b"))
            _check_outputs(given, own, (_name(a, "a"), _name(b, "b")))
            _check_scoring(given, own, (_name(a, "a"), _name(b, "b")))
            chosen = _resolve_spec(given, *own)
            chosen = dataclasses.replace(chosen, input=_common_input(chosen.input, first, second))
            reference_spec = chosen
            kind = chosen.output.kind  # the kinds differ if NMS is inside one of the two
            if own[0] and (own[0].output.kind != kind or _decodes_otherwise(own[0], chosen)):
                reference_spec = dataclasses.replace(own[0], input=chosen.input)
            if own[1] and _decodes_otherwise(own[1], chosen):
                chosen = dataclasses.replace(own[1], input=chosen.input)
            feeds = make_parity_inputs(chosen, how.images)
            feeds = more(feeds, chosen) if more is not None else feeds
            feeds = feeds.restrict_to(_input_filter(first)).restrict_to(_input_filter(second))
            opened_here = isinstance(a, (str, Path))
            tolerance = tolerance or limits_between(own)
            expected = expect({_name(a, "a"): first}, reference_spec, feeds, closing=opened_here, progress=progress)
        fitting = expected.restrict_to(_input_filter(second))
        yield Pair(fitting, _name(b, "b"), second, chosen, tolerance)


def _resolve_spec(given: ModelSpec | None, *own: ModelSpec | None) -> ModelSpec:
    """Return the given spec, or the last of the models' own."""
    known = given or next((spec for spec in reversed(own) if spec), None)
    if known is None:
        raise SpecError(
            "neither model carries a spec that describes its output, or tells enough without one: pass one (spec=, or "
            "--spec FILE); deploykit inspect FILE --draft-spec writes a draft"
        )
    return known


def _check_outputs(given: ModelSpec | None, own: Sequence[ModelSpec | None], names: tuple[str, str]) -> None:
    """Check that both models give the same kinds of values, before either of them runs.

    Raises:
        SpecError: their numbers of classes or keypoints differ.
    """
    if given is not None or None in own:
        return
    specs = [spec for spec in own if spec is not None]
    counts = [
        (spec.output.num_classes(spec), len(spec.keypoints.names) if spec.keypoints is not None else 0)
        for spec in specs
    ]
    if all(count[0] for count in counts) and counts[0] != counts[1]:
        told = " and ".join(
            f"{name} has {_counted(classes, 'class', 'es')}"
            + (f" and {_counted(points, 'keypoint', 's')}" if points else "")
            for name, (classes, points) in zip(names, counts, strict=True)
        )
        raise SpecError(f"{told}: models with different outputs cannot be compared")


def _counted(number: int, what: str, ending: str) -> str:
    return f"{number} {what}{ending * (number != 1)}"


def _check_scoring(given: ModelSpec | None, own: Sequence[ModelSpec | None], names: tuple[str, str]) -> None:
    """Check that both models mean the same by a score, unless a given spec says what it is.

    Raises:
        SpecError: equal rows would give other detections.
    """
    meanings = [export_adapter_of(spec).scoring if spec else "" for spec in own]
    if given is None and all(meanings) and meanings[0] != meanings[1]:
        told = " and ".join(f"{meaning} in {name}" for meaning, name in zip(meanings, names, strict=True))
        raise SpecError(
            f"the score of a detection is {told}, so equal rows give other detections: pass the meaning for both with "
            "--spec FILE, or choose it for a checkpoint with --score"
        )


def _decodes_otherwise(own: ModelSpec, chosen: ModelSpec) -> bool:
    """Whether a model's own spec and the chosen one differ in whether the rows are in pixels already."""
    same = own.output.kind == chosen.output.kind
    return same and export_adapter_of(own).decode != export_adapter_of(chosen).decode


def _input_filter(session: Session) -> Callable[[tuple[int, ...]], bool]:
    """Return a test of which input shapes to feed; a session with a fixed batch takes images one after the other."""
    fixed = session.inputs[0].shape[0]
    return session.accepts_shape if fixed is None else lambda shape: session.accepts_shape((fixed, *shape[1:]))


def _common_input(canvas: InputSpec, first: Session, second: Session) -> InputSpec:
    """Return the input that both sessions accept by their own shapes; the spec may describe another one."""
    for session in (first, second):
        if len(session.inputs) != 1 or not takes_images(session):
            found = ", ".join(f"{info.name} {info}" for info in session.inputs) or "none"
            raise SpecError(
                "expected one input of float images, (batch, channels, height, width) or with the channels last, but "
                f"the model has: {found}; compare an export that takes just these"
            )
    sides = [session.inputs[0].shape[2:] for session in (first, second)]
    fixed = {(height, width) for height, width in sides if height is not None and width is not None}
    if len(fixed) > 1:
        raise UsageError(f"the two models have fixed input sizes that differ: {' and '.join(map(str, sorted(fixed)))}")
    batch = second.inputs[0].shape[0]
    dynamic: Dynamic = "shape" if not fixed else "batch" if batch is None else "none"
    return dataclasses.replace(canvas, size=next(iter(fixed), canvas.size), batch=batch or 1, dynamic=dynamic)


def _channels_first(session: Session) -> Session:
    """Return a session that takes images with the channels first, of one that takes them with the channels last."""
    try:
        image = image_input(session.inputs)
    except UsageError:  # it takes something else, and is refused with what that is
        return session
    return FedSession(session, image) if image.last and "float" in image.dtype else session


@contextlib.contextmanager
def _open(model: str | Path | Session, loading: LoadOptions | None, compute: ComputeOptions) -> Iterator[Session]:
    """Open a session and close it afterwards, unless it is the caller's; a checkpoint is computed in float64."""
    if not isinstance(model, (str, Path)):
        yield model
    elif is_checkpoint(model):
        from deploykit.export.sessions.torch_module import open_torch_session  # only checkpoints need torch

        with open_torch_session(model, exact=True, threads=compute.threads, loading=loading)[0] as session:
            yield session
    else:
        engine = Path(model).suffix.lower() in ENGINE_SUFFIXES  # which has no CPU threads; they are the other model's
        with open_session(model, device=compute.device, threads=None if engine else compute.threads) as session:
            yield session


def expect(
    references: Mapping[str, Session],
    spec: ModelSpec,
    feeds: ParityInputs,
    *,
    once: Collection[str] = (),
    closing: bool = False,
    progress: Progress = SILENT,
) -> ReferenceOutputs:
    """Run the references one image at a time, and return their values.

    References named in ``once`` run on the first image only. A network with NMS inside gives its detections instead of
    rows. With ``closing`` each reference is closed after its last run, because it may be large.

    Raises:
        SpecError: an output is not what the spec says.
    """
    adapter = export_adapter_of(spec)
    rows: dict[str, dict[str, Array]] = {}
    total = sum(1 if reference in once else len(feeds.images) for reference in references)
    for reference, session in references.items():
        labels = list(feeds.images)[: 1 if reference in once else None]
        values = partial(_values, adapter, session, feeds, reference)
        rows[reference] = {}
        for label, found in zip(
            labels, _each(session, values, labels, Within(f"{reference} on ", progress)), strict=True
        ):
            rows[reference][label] = found
            done = sum(map(len, rows.values()))
            progress.share(f"reference values, {done} of {total} runs", done / total)
        if closing:
            session.close()
    computed = {reference: ", ".join(session.providers) for reference, session in references.items()}
    return ReferenceOutputs(feeds, rows, computed, adapter.compared(), chosen=spec.output.nms_inside)


def _values(adapter: ExportAdapter[Any], session: Session, feeds: ParityInputs, reference: str, label: str) -> Array:
    return adapter.reference_values(session, feeds.images[label], reference)


def _each(
    session: Session, values: Callable[[str], Array], labels: Sequence[str], progress: Progress
) -> Iterator[Array]:
    """Yield the values of each label in turn; a PyTorch model computes several at the same time."""
    together = getattr(session, "side_by_side", None)
    with contextlib.nullcontext(1) if together is None else together(len(labels)) as count:
        if count == 1:
            for label in labels:
                progress.step(label)
                yield values(label)
            return
        with ThreadPoolExecutor(count) as pool:
            progress.step(" and ".join(labels))
            yield from pool.map(values, labels)


def check_expected(
    expected: ReferenceOutputs,
    name: str,
    candidate: Session,
    spec: ModelSpec,
    tolerance: Tolerance | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Run the candidate on the batches, and compare its raw values and results with the reference values.

    Raises:
        SpecError: an output is not what the spec says. ParityError: the number of rows differs.
    """
    if spec.output.nms_inside and expected.layout.kind != spec.output.kind:
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
    """The notes of the inputs, and one if the model ignores its input and so would agree with any that does."""
    feeds = expected.feeds
    outputs = [
        rows
        for by_label in expected.rows.values()
        for label, rows in by_label.items()
        if label in feeds.images and feeds.images[label].shape == feeds.first.shape
    ]
    if len(outputs) > 1 and all(np.allclose(outputs[0], rows, rtol=0, atol=1e-6) for rows in outputs[1:]):
        return (*feeds.notes, "the model gives the same output for different inputs: this comparison verifies little")
    return feeds.notes
