"""Parity of an exported file: which sessions of it are compared, by what its plan says of NMS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from deploykit.errors import BackendError
from deploykit.export.nms.decode_node import written_out
from deploykit.export.nms.graph import CONF, IOU
from deploykit.export.nms.plan import NmsPlan
from deploykit.export.parity.compare import check_expected
from deploykit.export.parity.nms import check_detections
from deploykit.export.parity.report import ParityReport
from deploykit.runtime.backends import ort
from deploykit.runtime.parity.expected import Expected
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import open_session
from deploykit.spec import ModelSpec

__all__ = ["check_file"]


def check_file(
    plan: NmsPlan,
    expected: Expected,
    file: Path,
    spec: ModelSpec,
    on_step: Callable[[str], None],
    limits: Tolerance | None = None,
) -> ParityReport:
    """Run a file that was made by ``plan`` and compare it with what is expected, by ``limits`` or those of fp32.

    Raises:
        BackendError: it does not run. SpecError: an output is not what the spec says.
    """
    if plan.inside is not None:
        with (
            ort.open_session(file, provider="cpu") as session,
            ort.open_session(file, provider="cpu", overrides={CONF: np.zeros(1, np.float32)}) as opened,
        ):
            return check_detections(expected, file.name, session, spec, limits, opened=opened, on_step=on_step)
    if plan.mode == "none":
        with open_session(file, provider="cpu") as session:
            return check_expected(expected, file.name, session, spec, limits, on_step)
    if plan.mode == "plugin":  # its thresholds are attributes of the node, so the rows before it are compared
        return _check_plugin(plan, expected, file, spec, on_step, limits)
    overrides = {CONF: np.zeros(1, np.float32), IOU: np.ones(1, np.float32)}
    with (
        ort.open_session(file, provider="cpu") as session,
        ort.open_session(file, provider="cpu", overrides=overrides) as opened,
    ):
        return check_detections(expected, file.name, session, spec, limits, opened=opened, on_step=on_step)


def _check_plugin(
    plan: NmsPlan,
    expected: Expected,
    file: Path,
    spec: ModelSpec,
    on_step: Callable[[str], None],
    limits: Tolerance | None,
) -> ParityReport:
    """Compare the rows before NmsKpt, and what it finds in them where a library has it."""
    try:
        whole = ort.open_session(file, provider="cpu")
    except BackendError:
        parity = _check_rows(plan, expected, file, spec, on_step, limits, native=False)
        note = "the rows before the node deploykit::NmsKpt are compared; it did not run, no library here has it"
        if plan.decodes:
            note += " (nor DecodeRows, which was written out in ONNX's own operators for the comparison)"
        return replace(parity, notes=(*parity.notes, note))
    with whole:
        parity = _check_rows(plan, expected, file, spec, on_step, limits, native=True)
        found = check_detections(expected, file.name, whole, spec, limits, on_step=on_step)
    return replace(parity, matchings=(*parity.matchings, *found.matchings))


def _check_rows(
    plan: NmsPlan,
    expected: Expected,
    file: Path,
    spec: ModelSpec,
    on_step: Callable[[str], None],
    limits: Tolerance | None,
    *,
    native: bool,
) -> ParityReport:
    before = _without_nms(file, native)
    try:
        with open_session(before, provider="cpu") as session:
            rows = replace(spec, output=plan.rows)
            return check_expected(expected, file.name, session, rows, limits, on_step)
    finally:
        before.unlink()


def _without_nms(file: Path, native: bool) -> Path:
    """The same network without its last node, beside it; its outputs are what the node takes.

    Unless ``native``, nothing in it needs a library.
    """
    model = onnx.load(str(file), load_external_data=False)
    node = model.graph.node.pop()
    if not native:
        model = written_out(model)
    del model.graph.output[:]
    rows = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in node.input]
    model.graph.output.extend(rows)
    place = file.with_name(f"before-{file.name}")
    place.write_bytes(model.SerializeToString())
    return place
