"""How what a network with NMS inside finds lies in rows."""

from __future__ import annotations

from deploykit.spec import ModelSpec, RawDetections

__all__ = ["detections_layout"]


def detections_layout(spec: ModelSpec) -> RawDetections:
    """Detections as rows: a score for each class, and keypoints of three values."""
    stop = 4 + len(spec.classes)
    points = 3 * len(spec.keypoints.names) if spec.keypoints else 0
    return RawDetections(obj=None, cls=(4, stop), keypoints=(stop, stop + points) if points else None)
