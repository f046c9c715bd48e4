"""A gate for any two models: the comparison, judged as an export is judged, with one verdict and a JUnit file.

:func:`deploykit.export.parity.compare.compare` tells how far two models are apart. A gate must also not pass what was
not checked. So :func:`verify` reads from the graph the precision that a file really computes in, and takes the
tolerance of that; refuses a precision that has no tolerance until one is given; runs NMS in a graph with its thresholds
open as well; fails where nothing was found to compare; and widens a tolerance only by what float32 itself costs the
checkpoint, as an export does.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.atomic import write_atomic
from deploykit.errors import DeployError, ExportError, ParityError, UsageError, import_extra
from deploykit.export.junit import Case, junit_xml
from deploykit.export.nms.graph import CONF, IOU
from deploykit.export.parity.compare import Given, Pair, check_expected, prepared
from deploykit.export.parity.nms import check_detections, opened_detections
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import LIMITS
from deploykit.export.precision.read_back import check_precision, precisions_of
from deploykit.models.load_options import LoadOptions
from deploykit.progress import SILENT, Progress
from deploykit.runtime.backends import ort
from deploykit.runtime.compute import ComputeOptions
from deploykit.runtime.engine_record import read_record
from deploykit.runtime.files import existing_file
from deploykit.runtime.parity.expected import ParityInputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import is_checkpoint
from deploykit.runtime.spec_file import read_spec
from deploykit.spec import ENGINE_SUFFIXES, METADATA_KEY, ModelSpec, json_safe

__all__ = ["VerifyCheck", "VerifyReport", "chosen_tolerance", "error_junit", "verify"]

FIELDS = tuple(f.name for f in dataclasses.fields(Tolerance) if f.name != "judged")


@dataclass(frozen=True)
class VerifyCheck:
    """One check of a verification: its name, whether it passed, and what was found, with values and limit."""

    name: str
    ok: bool
    says: str


@dataclass(frozen=True)
class VerifyReport:
    """The verdict on a file.

    Attributes:
        reference, candidate: the two models as they were given.
        parity: the comparison.
        checks: every check, in the order in which it was done.
        precisions: model -> convolutions and matrix products by the precision that they compute in, read from the
            graph; only of ONNX files.
        seconds: how long it took.
    """

    reference: str
    candidate: str
    parity: ParityReport
    checks: tuple[VerifyCheck, ...]
    precisions: Mapping[str, Mapping[str, int]]
    seconds: float

    @cached_property
    def failures(self) -> tuple[VerifyCheck, ...]:
        """The checks that failed, the worst comparison first."""
        worst = str(self.parity.worst)
        return tuple(sorted((check for check in self.checks if not check.ok), key=lambda check: check.says != worst))

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.failures

    def raise_if_bad(self) -> None:
        """Raise an error that names the worst failure.

        Raises:
            ParityError: a check failed.
        """
        if self.failures:
            raise ParityError(f"{self.candidate} is not verified against {self.reference}: {self.failures[0].says}")

    def junit(self, path: str | Path) -> None:
        """Write a JUnit XML file with one test case for each check.

        Raises:
            OutputError: it cannot be written.
        """
        limits = _limits_text(self.parity.tolerance)
        cases = [Case(c.name, "" if c.ok else f"{c.says}\n{limits}", c.says) for c in self.checks]
        text = "\n".join((limits, *(f"note: {note}" for note in self.parity.notes)))
        suite, subject = _suite(self.candidate, self.reference), Path(self.candidate).name
        write_atomic(Path(path), junit_xml(suite, subject, cases, self.seconds, text))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able data."""
        data: dict[str, Any] = json_safe(
            {
                "verified": self.ok,
                "reference": self.reference,
                "candidate": self.candidate,
                "checks": [dataclasses.asdict(check) for check in self.checks],
                "precisions": {name: dict(counts) for name, counts in self.precisions.items()},
                "seconds": self.seconds,
            }
        )
        return data | {"parity": self.parity.to_dict()}


def error_junit(a: str | Path, b: str | Path, error: DeployError, path: str | Path) -> None:
    """Write the JUnit file of a verification that ended with an error instead of a verdict.

    Raises:
        OutputError: it cannot be written.
    """
    case = Case("verification", str(error), error=f"{type(error).__name__} (exit code {error.exit_code})")
    write_atomic(Path(path), junit_xml(_suite(str(b), str(a)), Path(b).name, [case], 0.0, ""))


def verify(
    a: str | Path,
    b: str | Path,
    *,
    images: Sequence[str | Path] = (),
    spec: ModelSpec | str | Path | None = None,
    tolerance: Tolerance | str | None = None,
    loading: LoadOptions | None = None,
    device: str | int | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Verify the exported file ``b`` against ``a`` by the rules of an export.

    Args:
        a: the reference: a checkpoint, an exported model, or the reference values (``.npz``) beside an engine.
        b: the file to verify.
        images: sample images; none takes the one that ships with deploykit. Seeded noise is always compared too.
        spec: the spec of both models, if they carry none, or a JSON file that holds it.
        tolerance: None: that of the lowest precision that either of them computes in; a :class:`Tolerance`; or text,
            see :func:`chosen_tolerance`.
        loading: how a checkpoint is loaded.
        device, threads: as for :func:`deploykit.compare`.
        progress: hears what is being compared.

    Raises:
        UsageError: the precision has no tolerance (int8, fp8) and none is given. Else as
            :func:`deploykit.export.parity.compare.compare`.
    """
    began, given = time.perf_counter(), read_spec(spec)
    found = {str(path): _precision_of(Path(path), given) for path in (a, b)}
    limits = tolerance
    if not isinstance(tolerance, Tolerance):
        base: str | None = _lowest(found.values())
        if Path(a).suffix.lower() == ".npz" and base == "fp32":  # they have the limits that the export measured
            base = None
        limits = chosen_tolerance(tolerance or "", base)
    assert limits is None or isinstance(limits, Tolerance)
    how = Given(images, given, limits, loading, ComputeOptions(device, threads))
    with prepared(a, b, how, more=partial(_with_plain, Path(b), found[str(b)].name), progress=progress) as pair:
        _check_judged(str(b), found[str(b)].name, pair.tolerance or pair.expected.limits)
        parity = _compared(Path(b), pair, progress)
        if not parity.ok and tolerance is None and is_checkpoint(a) and found[str(b)].ours == "fp32":
            from deploykit.export.parity.relaxing import relaxed_report  # torch; it loads the checkpoint once more

            parity = relaxed_report(Path(a), Path(b), pair, parity, loading, progress)
    checks = (*(found[str(path)].check(str(path)) for path in (a, b)), *_comparisons(parity), _found_something(parity))
    done = tuple(check for check in checks if check is not None)
    precisions = {name: each.counts for name, each in found.items() if each.counts}
    return VerifyReport(str(a), str(b), parity, done, precisions, time.perf_counter() - began)


def chosen_tolerance(text: str, precision: str | None) -> Tolerance | None:
    """Return a tolerance from text: a precision's name, and ``FIELD=NUMBER`` to change one of its limits.

    ``fp16``, ``pixels=0.01,probability=1e-4`` or ``fp16,unmatched=0.05``; the fields are those of :class:`Tolerance`.
    Without a name the changes are to that of ``precision``; empty text is that itself, and None if it is None.

    Raises:
        UsageError: another name, field or value; or changes without a name where the precision is not known.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    name = next((word for word in words if "=" not in word), precision)
    if name is None:
        if words:
            raise UsageError(
                f"--tolerance {text} changes limits, but reference values have their own: name the ones to change "
                f"({', '.join(LIMITS)}), such as fp32,{words[0]}"
            )
        return None
    if name not in LIMITS or sum("=" not in word for word in words) > 1:
        raise UsageError(f"--tolerance must be one of {', '.join(LIMITS)}, or FIELD=NUMBER; got {text!r}")
    changes: dict[str, float] = {}
    for field, _, number in (word.partition("=") for word in words if "=" in word):
        if field not in FIELDS:
            raise UsageError(f"a tolerance has the limits {', '.join(FIELDS)}; got {field!r}")
        try:
            changes[field] = float(number)
        except ValueError:
            changes[field] = -1.0
        if not changes[field] >= 0:
            raise UsageError(f"the limit {field} of a tolerance must be a number from 0 on, got {number!r}")
    return replace(LIMITS[name], **changes, judged=True) if changes else LIMITS[name]


@dataclass(frozen=True)
class _Found:
    """What a file says and what its graph is: ``name`` is the precision by which it is judged.

    ``ours``: the precision of a spec in the file itself; empty: it carries none.
    """

    name: str
    counts: Mapping[str, int]
    ours: str = ""

    def check(self, file: str) -> VerifyCheck | None:
        """Check that the graph computes in what the file's own spec says; None: it has no spec, or no such nodes."""
        if not self.ours or not self.counts:
            return None
        listed = ", ".join(f"{count} in {kind}" for kind, count in self.counts.items())
        try:
            check_precision(self.counts, self.ours, file)
        except ExportError as e:
            return VerifyCheck(f"precision of {Path(file).name}", False, str(e))
        return VerifyCheck(f"precision of {Path(file).name}", True, f"{self.ours}, as its spec says: {listed}")


def _precision_of(path: Path, given: ModelSpec | None) -> _Found:
    if path.suffix.lower() in ENGINE_SUFFIXES:
        record = read_record(existing_file(path, "an engine"))
        return _Found(record.spec.precision if record else "fp32", {})
    if path.suffix.lower() != ".onnx":
        return _Found("fp32", {})
    file = existing_file(path, "a model")
    onnx = import_extra("onnx", "export")
    try:
        model = onnx.load(str(file), load_external_data=False)
        counts = {kind: len(names) for kind, names in precisions_of(file).items()}
    except Exception:  # protobuf's errors have no base class; ONNX Runtime says what is wrong with the file
        return _Found("fp32", {})
    text = next((entry.value for entry in model.metadata_props if entry.key == METADATA_KEY), None)
    own = ModelSpec.from_json(text).precision if text is not None else ""
    if own or not counts:
        return _Found(own or (given.precision if given else "fp32"), counts, own)
    return _Found(_lowest(_Found(kind, {}) for kind in counts), counts)


def _with_plain(file: Path, precision: str, feeds: ParityInputs, spec: ModelSpec) -> ParityInputs:
    """Add whole images of one colour for an fp32 ONNX file that divides by what it computes, as an export does.

    Not for detectors: the cells of such an image tie, so two correct networks find other objects.
    """
    if file.suffix.lower() != ".onnx" or precision != "fp32" or spec.output.finds_objects:
        return feeds
    ir = import_extra("onnx_ir", "export")
    from deploykit.export.parity.extremes import plain_too  # which needs onnx_ir

    return plain_too(feeds, spec.input, ir.load(file).graph)


def _lowest(found: Any) -> str:
    order = list(LIMITS)
    return order[max((order.index(each.name) for each in found if each.name in order), default=0)]


def _check_judged(file: str, precision: str, limits: Tolerance) -> None:
    """Refuse a tolerance that judges nothing.

    Raises:
        UsageError: it is that of int8 or fp8.
    """
    if not limits.judged:
        raise UsageError(
            f"{file} computes in {precision}, which has no limit per value, so nothing would be judged: give limits "
            "(--tolerance pixels=8,probability=0.2,unmatched=0.1), or measure its accuracy (deploykit eval FILE "
            "--against REFERENCE)"
        )


def _compared(file: Path, pair: Pair, progress: Progress) -> ParityReport:
    """Compare; NMS in a graph whose thresholds are stored is also run with them open."""
    expected, spec = pair.expected, pair.spec
    stored = spec.output.nms_inside and file.suffix.lower() == ".onnx" and not expected.layout.nms_inside
    if stored and {CONF, IOU} <= _stored_names(file):
        thresholds = {CONF: np.zeros(1, np.float32), IOU: np.ones(1, np.float32)}
        with ort.open_session(file, provider="cpu", overrides=thresholds) as session:
            opened = opened_detections(expected, pair.name, session, spec, progress)
        return check_detections(
            expected, pair.name, pair.candidate, spec, pair.tolerance, opened=opened, progress=progress
        )
    return check_expected(expected, pair.name, pair.candidate, spec, pair.tolerance, progress)


def _stored_names(file: Path) -> set[str]:
    model = import_extra("onnx", "export").load(str(file), load_external_data=False)
    return {tensor.name for tensor in model.graph.initializer}


def _comparisons(parity: ParityReport) -> list[VerifyCheck]:
    """One check for each comparison of values, and of what follows from them."""
    compared: list[Any] = [*parity.differences, *parity.matchings]
    name: Callable[[Any], str] = lambda each: getattr(each, "values", None) or each.what  # noqa: E731
    return [
        VerifyCheck(f"{name(each)} on {each.input} against {each.reference}", each.ok, str(each)) for each in compared
    ]


def _found_something(parity: ParityReport) -> VerifyCheck:
    """Check that there was something to compare: two networks that find nothing always agree."""
    values = sum(d.count for d in parity.differences)
    results = sum(m.expected + m.found for m in parity.matchings)
    if values or results:
        return VerifyCheck("something is compared", True, f"{values:,} values and {results:,} results were compared")
    return VerifyCheck(
        "something is compared",
        False,
        "neither network found anything on any image, so nothing was compared: give images with objects (--sample)",
    )


def _suite(candidate: str, reference: str) -> str:
    return f"deploykit verify {candidate} against {reference}"


def _limits_text(limits: Tolerance) -> str:
    told = dataclasses.asdict(limits)
    return f"tolerance: {', '.join(f'{name} {told[name]:g}' for name in FIELDS)}"
