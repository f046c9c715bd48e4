"""The tolerance of each precision; fp32 has the defaults of :class:`Tolerance`."""

from __future__ import annotations

import math
from collections.abc import Iterable

from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.spec import ModelSpec

__all__ = ["FP16", "LIMITS", "REPORT_ONLY", "limits_between"]

FP16 = Tolerance(
    pixels=0.5,
    relative=0.0,
    side=0.03,
    probability=0.02,
    min_score=0.05,
    same_box=0.75,
    max_keypoint=4.0,
    max_score=0.02,
    borderline_iou=0.05,
    min_iou=0.9,
    unmatched=0.02,
    dense=0.02,
)
"""The tolerance of fp16. Rounding is relative, so a large box moves further. The values are twice the errors measured
on trained detectors in rows that score over 0.05, and six times those of dense outputs (docs/precision.md). They catch
faults; accuracy is judged on annotated images."""

BF16 = Tolerance(
    pixels=4.0,
    relative=0.0,
    side=0.1,
    probability=0.12,
    min_score=0.05,
    same_box=6.0,
    max_keypoint=24.0,
    max_score=0.12,
    borderline_iou=0.15,
    min_iou=0.7,
    unmatched=0.1,
    dense=0.12,
)
"""The tolerance of bf16, whose numbers have three bits less than those of fp16; chosen like that of fp16."""

REPORT_ONLY = Tolerance(
    pixels=math.inf,
    relative=0.0,
    probability=math.inf,
    min_score=0.05,
    same_box=0.0,
    max_keypoint=math.inf,
    max_score=math.inf,
    borderline_iou=0.0,
    min_iou=0.5,
    dense=math.inf,
    judged=False,
)
"""The tolerance of int8 and fp8: differences are reported only; accuracy is judged on annotated images."""

LIMITS = {"fp32": Tolerance(), "fp16": FP16, "bf16": BF16, "int8": REPORT_ONLY, "fp8": REPORT_ONLY}
"""Precision -> tolerance, the narrowest first."""


def limits_between(specs: Iterable[ModelSpec | None]) -> Tolerance:
    """Return the tolerance for networks that are compared with each other: that of the lowest precision."""
    order = list(LIMITS)
    lowest = max((order.index(spec.precision) for spec in specs if spec is not None), default=0)
    return LIMITS[order[lowest]]
