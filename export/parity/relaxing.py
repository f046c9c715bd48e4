"""The wider tolerance of a network that magnifies rounding, for a file that is verified after its export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploykit.export.nms.plan import NmsPlan
from deploykit.export.outputs import export_adapter_of
from deploykit.export.parity.compare import Pair
from deploykit.export.parity.report import ParityReport
from deploykit.export.parity.verification import Verification
from deploykit.models.fuse import fuse_model
from deploykit.models.load_options import LoadOptions
from deploykit.models.registry import load_model
from deploykit.progress import SILENT, Progress

__all__ = ["relaxed_report"]


def relaxed_report(
    checkpoint: Path,
    file: Path,
    pair: Pair,
    failed: ParityReport,
    loading: LoadOptions | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Judge a failed fp32 file again, by what float32 itself costs its checkpoint, as its export does.

    Returns the failed report where rounding does not explain the difference, with a note if ONNX Runtime's optimizer
    does. A network with NMS of its own, and a file with the node NmsKpt, are not judged again.

    Args:
        checkpoint: the reference.
        file: an ONNX file that deploykit exported from it.
        pair: the reference values of the checkpoint, and the spec of the file.
        failed: the report.
        loading: how the checkpoint is loaded.
        progress: hears what is measured.
    """
    model, spec = load_model(checkpoint, loading=loading), pair.spec
    inside, own = spec.output.thresholds_inside, model.spec.output
    if own.thresholds_inside or (spec.output.kind != own.kind and (own.nms_inside or not inside)):
        return failed
    rows = replace(spec, output=own, task=model.spec.task)
    layout = export_adapter_of(rows).rows_for_nms("graph") if inside else None
    plan = NmsPlan("graph" if inside else "none", layout, spec.output_names, 0)
    verification = Verification(
        model, fuse_model(model.module), rows, pair.expected.feeds, progress, _expected=pair.expected
    )
    again, fault = verification.check_relaxed(failed, file, plan, spec)
    return replace(again, notes=(*again.notes, fault)) if fault else again
