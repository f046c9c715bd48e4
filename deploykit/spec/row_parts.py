"""What rows before NMS and rows of chosen detections share: columns of keypoints and angles, masks of prototypes."""

from __future__ import annotations

from deploykit.errors import SpecError
from deploykit.spec.output import OutputTensor, Span, SpecLike

__all__ = ["check_angle", "check_keypoints", "check_masks", "prototype_tensors"]


def check_masks(coefficients: Span | None, prototypes: str | None, spec: SpecLike) -> None:
    """Check that instances, and only they, have coefficients of masks and an output of prototypes.

    Raises:
        SpecError: they do not.
    """
    if not (spec.task == "instances") == (coefficients is not None) == (prototypes is not None):
        raise SpecError(
            "a spec of the task instances has columns of coefficients and an output of prototypes, no other"
        )


def check_angle(angle: object, spec: SpecLike) -> None:
    """Check that oriented boxes, and only they, have angles: a column, or an output (None: there is none).

    Raises:
        SpecError: they do not.
    """
    if (spec.task == "oriented") != (angle is not None):
        raise SpecError("a spec of the task oriented has angles, and no other has")


def prototype_tensors(name: str | None) -> tuple[OutputTensor, ...]:
    """Return the output of prototypes, if there is one."""
    axes = ("batch", "prototypes", "mask_height", "mask_width")
    return () if name is None else (OutputTensor(name, axes, free=axes[2:]),)


def check_keypoints(span: Span | None, dims: int, spec: SpecLike) -> None:
    """Check that the columns of keypoints, ``dims`` values each, hold those that the spec names.

    Raises:
        SpecError: they do not, or only one of the two is there.
    """
    if (spec.keypoints is None) != (span is None):
        raise SpecError("a spec has keypoint names and keypoint columns, or neither")
    if spec.keypoints and span:
        width = span[1] - span[0]
        if width != len(spec.keypoints.names) * dims:
            raise SpecError(f"{width} keypoint columns do not hold {len(spec.keypoints.names)} x {dims} values")
