"""The thresholds of the postprocess."""

from __future__ import annotations

from dataclasses import dataclass

from deploykit.errors import SpecError
from deploykit.spec.checks import check_range

__all__ = ["Thresholds"]

MOST_OBJECTS = 1_000_000  # the largest networks give some 100,000 rows per image


@dataclass(frozen=True)
class Thresholds:
    """Defaults of the postprocess: keep ``score > conf``, suppress ``IoU > iou``, at most ``max_det`` an image.

    NMS sees the best ``pre_nms_topk`` candidates of an image; ``keypoint`` is the visibility from which one is drawn.
    """

    conf: float = 0.25
    iou: float = 0.45
    max_det: int = 300
    pre_nms_topk: int = 1000
    keypoint: float = 0.5

    def __post_init__(self) -> None:
        for name in ("conf", "iou", "keypoint"):
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise SpecError(f"{name} must lie in 0..1, got {value}")
        for name in (few for few in ("max_det", "pre_nms_topk") if getattr(self, few) < 1):
            raise SpecError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_det", "pre_nms_topk"):
            check_range(name, getattr(self, name), 1, MOST_OBJECTS)
