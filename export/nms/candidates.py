"""Selection of the candidate rows of NMS, as PyTorch modules that are traced.

Scores are computed first. Then only the best ``pre_nms_topk`` rows are gathered, decoded and passed on, such as 1,000
of the 57,375 rows of a pose network at 960 px. :mod:`deploykit.runtime.postprocess.nms` is the definition.
"""

from __future__ import annotations

import copy
import itertools
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from deploykit.models.layers.anchor_head import Detect, Segment
from deploykit.models.layers.operators import best_scores
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import RawDetections

__all__ = [
    "NO_CANDIDATE",
    "Candidates",
    "HeadRowsAndSelection",
    "HeadSelection",
    "RowSelection",
    "RowsAndSelection",
    "candidates_of",
    "with_candidate_head",
]

NO_CANDIDATE = -1.0  # the score of a row that is no candidate; thresholds are at least 0


class Candidates(NamedTuple):
    """The best rows of each image, sorted by score.

    They are boxes ``(B,k,4)`` xyxy (oriented ones cx, cy, w, h), scores ``(B,k)``, labels ``(B,k)``, all_scores
    ``(B,N)`` of every row, keypoints ``(B,k,K,3)`` (or ``(B,k,0,3)``), angles ``(B,k,1)`` (or ``(B,k,0)``), and the
    coefficients of masks ``(B,k,P)`` (or ``(B,k,0)``). A row with NaN or infinity has score -1. ``prototypes``
    are those of the network, ``(B,P,h,w)``, or empty.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    all_scores: Tensor
    keypoints: Tensor
    angles: Tensor
    coefficients: Tensor
    prototypes: Tensor


class RowSelection(nn.Module):
    """Selects candidates from raw rows ``(B, N, columns)`` of a layout, which prototypes may follow; N is at least
    ``count``."""

    def __init__(self, layout: RawDetections, count: int) -> None:
        super().__init__()
        self.layout, self.count = layout, count

    def forward(self, given: Tensor | tuple[Tensor, ...]) -> Candidates:
        rows, *prototypes = (given,) if isinstance(given, Tensor) else given
        layout, (factor, _) = self.layout, self.layout.score_spans
        best = _products(rows, layout).amax(-1)
        if factor is not None:
            best = torch.minimum(best, rows[..., factor[0]])
        finite = (rows * 0).sum(-1) == 0  # NaN and infinity times 0 are NaN
        all_scores = torch.where(finite, best, NO_CANDIDATE)
        scores, index = best_scores(all_scores, self.count)
        chosen = torch.gather(rows, 1, index[..., None].expand(-1, -1, rows.shape[2]))
        found = candidates_of(chosen, layout, scores, all_scores)
        return found._replace(prototypes=prototypes[0]) if prototypes else found


def candidates_of(rows: Tensor, layout: RawDetections, scores: Tensor, all_scores: Tensor) -> Candidates:
    """Split the chosen rows ``(B, k, columns)`` into candidates."""
    # 0 times infinity would give NaN below; a row that is no candidate is never read.
    rows = torch.where(scores[..., None] == NO_CANDIDATE, 0.0, rows)
    half = rows[..., layout.box[0] + 2 : layout.box[1]] / 2
    centre = rows[..., layout.box[0] : layout.box[0] + 2]
    points = rows[..., slice(*(layout.keypoints or (0, 0)))]
    points = points.view(*points.shape[:2], -1, layout.kpt_dims)
    if layout.kpt_dims == 2:  # without visibility, keypoints count as visible
        points = torch.cat((points, torch.ones_like(points[..., :1])), -1)
    labels = _products(rows, layout).argmax(-1)
    boxes = rows[..., slice(*layout.box)] if layout.angle else torch.cat((centre - half, centre + half), -1)
    angles, coefficients = (rows[..., slice(*(span or (0, 0)))] for span in (layout.angle, layout.coefficients))
    return Candidates(boxes, scores, labels, all_scores, points, angles, coefficients, prototypes=rows.new_zeros(0))


def _products(rows: Tensor, layout: RawDetections) -> Tensor:
    """Return the score of each class: ``(..., columns)`` to ``(..., classes)``."""
    factor, classes = layout.score_spans
    scores = rows[..., slice(*classes)]
    return scores if factor is None else scores * rows[..., slice(*factor)]


class HeadSelection(nn.Module):
    """Selects candidates from an anchor head's features; only the chosen cells are decoded, all their columns at once.

    Args:
        head: the folded head.
        layout: the layout of its rows.
        count: how many rows to choose, at most the number of rows.
    """

    def __init__(self, head: Detect, layout: RawDetections, count: int) -> None:
        super().__init__()
        self.head, self.layout, self.count = head, layout, count

    def forward(self, *features: Tensor) -> Candidates:
        found = self.of_raw([self.head.raw(x, level) for level, x in enumerate(features[: self.head.num_levels])])
        return self._with_prototypes(found, features)

    def _with_prototypes(self, found: Candidates, features: tuple[Tensor, ...]) -> Candidates:
        return found._replace(prototypes=self.head.proto(*features)) if isinstance(self.head, Segment) else found

    def of_raw(self, raw: list[Tensor]) -> Candidates:
        """Return the candidates in the head's raw values, one map ``(B, anchors * columns, H, W)`` per level."""
        head, columns = self.head, self.head.columns
        cells = [r.view(r.shape[0], head.num_anchors, columns, -1) for r in raw]  # (B, A, columns, H * W)
        all_scores = torch.cat([self._scores(c) for c in cells], 1)
        scores, index = best_scores(all_scores, self.count)
        level, anchor, x, y, cell = self._locate(index, raw)
        every = torch.cat(cells, 3)
        step = every.shape[3]
        # Value c of anchor a and cell p lies at (a * columns + c) * step + p.
        at = (anchor * columns * step + cell)[..., None] + torch.arange(columns, device=index.device) * step
        values = torch.gather(every.flatten(1), 1, at.flatten(1)).view(*index.shape, columns)
        strides = torch.tensor(head.stride, dtype=values.dtype, device=values.device)[level][..., None]
        offset = torch.stack((x, y), -1).to(values.dtype) * strides - 0.5 * strides
        anchors = head.anchor_grid.flatten(1, 4).view(head.num_levels * head.num_anchors, 2)
        rows = head.rows_of(values, strides, offset, anchors[level * head.num_anchors + anchor])
        return candidates_of(rows, self.layout, scores, all_scores)

    def _scores(self, cells: Tensor) -> Tensor:
        """Return each cell's best score, -1 if a value is not finite: ``(B, A, columns, P)`` to ``(B, A * P)``."""
        if self.layout.score == "obj":
            scores = cells[:, :, 4].sigmoid()
        else:
            probabilities = cells[:, :, 4 : 5 + self.head.num_classes].sigmoid()
            scores = (probabilities[:, :, 1:] * probabilities[:, :, :1]).amax(2)
        finite = (cells * 0).sum(2) == 0
        return torch.where(finite, scores, NO_CANDIDATE).flatten(1)

    def _locate(self, index: Tensor, raw: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return each row's level, anchor, x, y, and index among the cells of all levels, each ``(B, k)``."""
        sizes = [(r.shape[2], r.shape[3]) for r in raw]
        areas = [h * w for h, w in sizes]
        firsts = [0, *itertools.accumulate(self.head.num_anchors * area for area in areas)]
        table = torch.tensor(
            [[firsts[i], areas[i], sizes[i][1], sum(areas[:i])] for i in range(len(raw))], device=index.device
        )
        level = torch.zeros_like(index)
        for start in firsts[1:-1]:
            level = level + (index >= start)
        first, area, width, before = table[level].unbind(-1)
        local = index - first
        anchor = local // area
        cell = local - anchor * area
        y = cell // width
        return level, anchor, cell - y * width, y, before + cell


class HeadRowsAndSelection(HeadSelection):
    """Gives an anchor head's rows, followed by their candidates."""

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # one tensor more
        raw = [self.head.raw(x, level) for level, x in enumerate(features[: self.head.num_levels])]
        rows = torch.cat([self.head.decode(each, level) for level, each in enumerate(raw)], 1)
        return rows, *self._with_prototypes(self.of_raw(raw), features)


class RowsAndSelection(nn.Module):
    """Gives raw rows, followed by their candidates."""

    def __init__(self, selection: RowSelection) -> None:
        super().__init__()
        self.selection = selection

    def forward(self, given: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return given if isinstance(given, Tensor) else given[0], *self.selection(given)


def with_candidate_head(graph: LayerGraph, layout: RawDetections, count: int, *, rows: bool = False) -> LayerGraph:
    """Return the network with a head that gives candidates instead of rows; with ``rows`` it gives both."""
    kind = HeadRowsAndSelection if rows else HeadSelection
    new = copy.copy(graph)
    head = kind(cast(Detect, graph.model[-1]), layout, count)
    new._modules = {**graph._modules, "model": nn.Sequential(*list(graph.model)[:-1], head)}
    return new
