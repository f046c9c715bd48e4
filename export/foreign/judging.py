"""The verdict on a converted file: its outputs against those of the file that it was made from, on real images.

With a spec, results are compared: detections as sets, classes, grey levels. Without one, every output is compared value
by value, or what goes into the choice at the end of the graph, because that alone does not depend on an order.

fp16 and bf16 have limits per value. int8 and fp8 have none: their accuracy decides, and images with annotations measure
it (``--max-drop``). What is enforced of them is what no quantization that is any good breaks: most of the detections
are still there, and outputs are nearer to those before than half of their size.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from deploykit.errors import ParityError
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.compare import check_expected, expect
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.tolerances import LIMITS, REPORT_ONLY
from deploykit.progress import SILENT, Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.differences import Difference, tensor_difference
from deploykit.runtime.parity.expected import Batch, ParityInputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import Session, input_arrays
from deploykit.spec import ModelSpec

__all__ = ["MOST_ERROR", "PREPARED", "QUANTIZED", "compare_sessions", "limits_of", "values_apart"]

PREPARED = Tolerance(
    pixels=0.05,
    relative=1e-4,
    probability=1e-3,
    min_score=0.01,
    same_box=0.1,
    max_keypoint=0.5,
    max_score=2e-3,
    borderline_iou=0.01,
    dense=1e-3,
)
"""The tolerance of a graph in which only constants and batch norms were folded: two orders of summation in float32."""

QUANTIZED = Tolerance(
    pixels=math.inf,
    relative=0.0,
    probability=0.15,
    min_score=0.25,
    same_box=1.0,
    max_keypoint=math.inf,
    max_score=0.35,
    borderline_iou=0.15,
    min_iou=0.5,
    unmatched=0.25,
    dense=0.1,
)
"""What is enforced of results in int8 and fp8: three of four detections, classes or pixels are as before."""

MOST_ERROR = 0.5
"""The largest root mean square error of an output in int8 and fp8, of the root mean square of its values."""


def limits_of(precision: str) -> Tolerance:
    """Return the tolerance that a precision is judged by, unless another one is given."""
    return QUANTIZED if not LIMITS[precision].judged else LIMITS[precision]


def compare_sessions(
    names: tuple[str, str],
    sessions: tuple[Session, Session],
    spec: ModelSpec,
    feeds: ParityInputs,
    limits: Tolerance,
    progress: Progress = SILENT,
) -> ParityReport:
    """Compare two networks by the results that their spec describes; ``names`` are those of the two.

    Raises:
        SpecError: an output is not what the spec says. BackendError: a network failed.
    """
    if limits is QUANTIZED and not export_adapter_of(spec).decides:
        return values_apart(names, sessions, feeds, limits, progress)
    expected = expect({names[0]: sessions[0]}, spec, feeds, progress=progress)
    if limits is not QUANTIZED:
        return check_expected(expected, names[1], sessions[1], spec, limits, progress)
    values = check_expected(expected, names[1], sessions[1], spec, REPORT_ONLY, progress)
    judged = check_expected(expected, names[1], sessions[1], spec, QUANTIZED, progress)
    results = tuple(matching for matching in judged.matchings if matching.what != "best rows")
    return replace(values, matchings=results, tolerance=limits)


def values_apart(
    names: tuple[str, str],
    sessions: tuple[Session, Session],
    feeds: ParityInputs,
    limits: Tolerance,
    progress: Progress = SILENT,
    *,
    ordered: bool = True,
) -> ParityReport:
    """Compare two networks output by output, whatever these mean.

    Unless ``ordered``, the values of each output are compared from the smallest to the largest: the order of rows that
    a network chooses follows from scores that may be equal.

    Raises:
        ParityError: an output has another shape. BackendError: a network failed.
    """
    found: list[Difference] = []
    for batch in feeds.batches:
        progress.step(batch.name)
        for images in _fed(batch, feeds, sessions[0].inputs[0].shape[0]):
            first, second = (session.run(input_arrays(session.inputs[0], images)) for session in sessions)
            for name in first:
                difference = _relative if limits is QUANTIZED else tensor_difference
                slots = _slots(first[name], ordered), _slots(second[name], ordered)
                if any(each.size for side in slots for each in side):
                    found.append(difference((*names, batch.name), name, *slots, limits))
    computed = {names[0]: ", ".join(sessions[0].providers)}
    return ParityReport(computed, tuple(found), (), feeds.notes, limits)


def _fed(batch: Batch, feeds: ParityInputs, fixed: int | None) -> list[Array]:
    """The inputs of a batch: one, or one for each image where a network takes another number of them."""
    images = [feeds.images[label] for label in batch.images]
    if fixed in (None, len(images)):
        return [np.concatenate(images)]
    return [image.repeat(fixed or 1, 0) for image in images]


def _slots(output: Array, ordered: bool) -> list[Array]:
    """The part of each image in an output; what is not per image is one part."""
    parts = list(output) if output.ndim > 1 else [output.reshape(1, -1)]
    return parts if ordered else [np.sort(part, axis=None).reshape(part.shape) for part in parts]


def _relative(
    names: tuple[str, str, str], values: str, expected: list[Array], found: list[Array], limits: Tolerance
) -> Difference:
    """Return the root mean square error of an output, against :data:`MOST_ERROR` of its values' root mean square.

    Raises:
        ParityError: the two have different shapes.
    """
    if [each.shape for each in expected] != [each.shape for each in found]:
        raise ParityError(
            f"{names[1]} gives {len(found)} x {found[0].shape} values on {names[2]}, {names[0]} gives "
            f"{len(expected)} x {expected[0].shape}"
        )
    a, b = (np.stack(side).astype(np.float64).reshape(len(side) * len(side[0]), -1) for side in (expected, found))
    with np.errstate(invalid="ignore"):  # infinity
        error = np.abs(a - b)
        size = math.sqrt(float(np.square(error).mean()))
        share = size / max(math.sqrt(float(np.square(a).mean())), 1e-12)
    error[~np.isfinite(error)] = np.inf
    row, column = np.unravel_index(int(error.argmax()), error.shape)
    worst = (int(row), int(column), float(a[row, column]), float(b[row, column]))
    used = share / MOST_ERROR if math.isfinite(share) else math.inf
    return Difference(*names, f"{values}, root mean square", a.size, size, used, worst, dense=True)
