"""Parity of an exported ONNX file: which of its outputs are compared depends on its NMS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

from deploykit.errors import BackendError
from deploykit.export.nms.decode_node import expand_decode_nodes
from deploykit.export.nms.graph import CONF, IOU, NMS_NODE
from deploykit.export.nms.plan import NmsPlan
from deploykit.export.parity.compare import check_expected, expect
from deploykit.export.parity.nms import check_detections, opened_detections
from deploykit.export.parity.one_to_one import chosen_reference
from deploykit.export.parity.report import ParityReport
from deploykit.export.sessions.freed_memory import release_freed_memory
from deploykit.progress import Progress
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends import ort
from deploykit.runtime.parity.expected import ParityInputs, ReferenceOutputs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import EndToEndRows, ModelSpec

__all__ = ["check_file", "reference_for", "reference_of_file"]


def check_file(
    plan: NmsPlan,
    expected: ReferenceOutputs,
    file: Path,
    spec: ModelSpec,
    progress: Progress,
    limits: Tolerance | None = None,
    *,
    optimization: ort.Optimization = "all",
) -> ParityReport:
    """Run a file that was exported with ``plan`` and compare it with the reference values.

    The tolerance is ``limits``; None takes that of the reference values.

    Raises:
        BackendError: the file does not run. SpecError: an output is not what the spec says.
    """
    opened_by = partial(_opened, optimization=optimization)
    if plan.mode == "plugin":  # thresholds are attributes of the node, so the rows before it are compared
        return _check_plugin(plan, expected, file, spec, progress, limits, opened_by)
    if plan.mode == "none" and plan.inside is None:
        with opened_by(file) as session:
            return check_expected(reference_for(plan, expected, spec), file.name, session, spec, limits, progress)
    with opened_by(file, overrides=_open_thresholds(plan)) as session:
        opened = opened_detections(expected, file.name, session, spec, progress)
    release_freed_memory()
    with opened_by(file) as session:
        return check_detections(expected, file.name, session, spec, limits, opened=opened, progress=progress)


def _opened(file: Path, **options: Any) -> ort.OrtSession:
    """Open a file on the CPU, without the memory that reading it took."""
    session = ort.open_session(file, provider="cpu", **options)
    release_freed_memory()
    return session


def reference_for(plan: NmsPlan, expected: ReferenceOutputs, spec: ModelSpec) -> ReferenceOutputs:
    """Return what a file that was exported with ``plan`` is compared with: its detections where it chooses them."""
    if not plan.chosen or expected.layout.nms_inside:
        return expected
    return chosen_reference(expected, cast(EndToEndRows, spec.output), plan.chosen)


def reference_of_file(plan: NmsPlan, feeds: ParityInputs, file: Path, spec: ModelSpec) -> ReferenceOutputs:
    """Run a file on the images of a check, and return its values as a reference for other runs of it.

    Raises:
        BackendError: the file does not run. SpecError: an output is not what the spec says.
    """
    if plan.mode == "plugin":
        with _rows_before(file, native=False) as before, ort.open_session(before, provider="cpu") as session:
            return expect({file.name: session}, replace(spec, output=plan.rows), feeds)
    if plan.mode == "none" and plan.inside is None:
        with ort.open_session(file, provider="cpu") as session:
            return expect({file.name: session}, spec, feeds)
    opened = replace(spec, thresholds=replace(spec.thresholds, conf=0.0))
    with ort.open_session(file, provider="cpu", overrides=_open_thresholds(plan)) as session:
        return expect({file.name: session}, opened, feeds)


def _open_thresholds(plan: NmsPlan) -> dict[str, Array]:
    """Return stored thresholds that let everything through; a network with NMS of its own keeps its IoU."""
    opened: dict[str, Array] = {CONF: np.zeros(1, np.float32)}
    return opened if plan.inside is not None else {**opened, IOU: np.ones(1, np.float32)}


def _check_plugin(
    plan: NmsPlan,
    expected: ReferenceOutputs,
    file: Path,
    spec: ModelSpec,
    progress: Progress,
    limits: Tolerance | None,
    opened_by: Callable[..., ort.OrtSession],
) -> ParityReport:
    """Compare the rows before NmsKpt, and its detections if a library has the node."""
    try:
        whole = opened_by(file)
    except BackendError:
        parity = _check_rows(plan, expected, file, spec, progress, limits, opened_by, native=False)
        note = "the rows before the node deploykit::NmsKpt are compared; no library here can run the node itself"
        if plan.decodes:
            note += " (nor DecodeRows, which was expanded to ONNX's own operators for the comparison)"
        return replace(parity, notes=(*parity.notes, note))
    with whole:
        parity = _check_rows(plan, expected, file, spec, progress, limits, opened_by, native=True)
        found = check_detections(expected, file.name, whole, spec, limits, progress=progress)
    return replace(parity, matchings=(*parity.matchings, *found.matchings))


def _check_rows(
    plan: NmsPlan,
    expected: ReferenceOutputs,
    file: Path,
    spec: ModelSpec,
    progress: Progress,
    limits: Tolerance | None,
    opened_by: Callable[..., ort.OrtSession],
    *,
    native: bool,
) -> ParityReport:
    with _rows_before(file, native=native) as before, opened_by(before) as session:
        rows = replace(spec, output=plan.rows)
        return check_expected(expected, file.name, session, rows, limits, progress)


@contextmanager
def _rows_before(file: Path, *, native: bool) -> Iterator[Path]:
    """Write the network up to the node NmsKpt to a temporary file; its outputs are that node's input and prototypes.

    Unless ``native``, DecodeRows is expanded, so that the file needs no library.
    """
    model = onnx.load(str(file), load_external_data=False)
    place = next(place for place, node in enumerate(model.graph.node) if node.op_type == NMS_NODE)
    rows, after = model.graph.node[place].input[0], {name for node in model.graph.node[place:] for name in node.output}
    kept = [output.name for output in model.graph.output if output.name not in after]
    del model.graph.node[place:]
    if not native:
        model = expand_decode_nodes(model)
    del model.graph.output[:]
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in (rows, *kept)]
    model.graph.output.extend(outputs)
    before = file.with_name(f"before-{file.name}")
    before.write_bytes(model.SerializeToString())
    try:
        yield before
    finally:
        before.unlink()
