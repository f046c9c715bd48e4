"""The layout of rows that hold the detections of a network with NMS inside."""

from __future__ import annotations

from deploykit.errors import SpecError
from deploykit.spec import ModelSpec, Output, RawDetections

__all__ = ["detections_layout", "rows_in"]

MOST_CLASSES = 1000
"""The classes of an export by others that does not tell their number."""


def detections_layout(spec: ModelSpec) -> RawDetections:
    """Return the layout of detections as rows: one score per class, keypoints of three values or an angle, and whether
    prototypes follow (:class:`deploykit.runtime.parity.masked_rows.MaskedRows`)."""
    stop = 4 + (len(spec.classes) or MOST_CLASSES)
    points = 3 * len(spec.keypoints.names) if spec.keypoints else 0
    keypoints = (stop, stop + points) if points else None
    angle = (stop, stop + 1) if spec.output.oriented else None
    prototypes = getattr(spec.output, "prototypes", None)  # a field of the kinds whose objects may have masks of them
    return RawDetections(obj=None, cls=(4, stop), keypoints=keypoints, angle=angle, prototypes=prototypes)


def rows_in(layout: Output) -> RawDetections:
    """Return the layout of reference values as one of rows, which detections are compared with.

    Raises:
        SpecError: the reference values are of another kind.
    """
    if not isinstance(layout, RawDetections):
        raise SpecError(f"detections are compared with rows, the reference values are of kind {layout.kind!r}")
    return layout
