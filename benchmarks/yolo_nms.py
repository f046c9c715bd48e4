"""NMS by the YOLO projects' algorithm, for comparison; what suppresses among sorted boxes is given."""

from __future__ import annotations

from collections.abc import Callable

import torch

from deploykit.spec import RawDetections, Thresholds


def yolo_nms(
    rows: torch.Tensor,
    layout: RawDetections,
    thresholds: Thresholds,
    suppress: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The rows that stay: ``(n, 6 + keypoint columns)``; ``suppress`` takes corners and scores, the best first, and
    gives the positions that stay."""
    products = rows[:, slice(*layout.cls)]
    if layout.obj is not None:
        rows = rows[rows[:, layout.obj[0]] > thresholds.conf]
        products = rows[:, slice(*layout.cls)] * rows[:, slice(*layout.obj)]
    scores, labels = products.max(1)
    keep = scores > thresholds.conf
    rows, scores, labels = rows[keep], scores[keep], labels[keep]
    centre, half = rows[:, :2], rows[:, 2:4] / 2
    boxes = torch.cat((centre - half, centre + half), 1)
    order = scores.argsort(descending=True)[: thresholds.pre_nms_topk]
    moved = boxes[order] + labels[order, None].float() * 4096
    kept = order[suppress(moved, scores[order])[: thresholds.max_det]]
    parts = [boxes[kept], scores[kept, None], labels[kept, None].float()]
    if layout.keypoints:
        parts.append(rows[kept, slice(*layout.keypoints)])
    return torch.cat(parts, 1)
