"""Options of an export that ask for given thresholds."""

from __future__ import annotations

from deploykit.export.options import OnnxOptions
from deploykit.spec import Thresholds


def asked(limits: Thresholds) -> OnnxOptions:
    return OnnxOptions(conf=limits.conf, iou=limits.iou, max_det=limits.max_det, pre_nms_topk=limits.pre_nms_topk)
