"""Selection of the candidate rows of NMS in a head without anchors, before they are decoded."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.export.nms.candidates import NO_CANDIDATE, Candidates, candidates_of
from deploykit.export.nms.one_to_one import free_head, with_head
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.points import RawLevel, cells_of
from deploykit.models.layers.operators import best_scores
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import RawDetections

__all__ = ["FreeSelection", "with_free_selection"]


class FreeSelection(nn.Module):
    """Selects candidates from a head's features; only the chosen cells are decoded.

    A score is the probability of a cell's best class. A cell with a raw value that is NaN or infinite is no candidate,
    as a row that it decodes to is none.

    Args:
        head: the folded head, of a branch that gives the row of every cell.
        layout: the layout of its rows.
        count: how many rows to choose, at most the number of cells.
        rows: all rows come first, before the candidates.
    """

    def __init__(self, head: FreeDetect, layout: RawDetections, count: int, *, rows: bool = False) -> None:
        super().__init__()
        self.head, self.layout, self.count, self.rows = head, layout, count, rows

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        raw = self.head.raw(features)
        found, others = self.of_raw(raw), self.head.others(features)
        if others:
            found = found._replace(prototypes=others[0])
        return (self.head.rows_of(*cells_of(raw, self.head.stride)), *found) if self.rows else found

    def of_raw(self, raw: list[RawLevel]) -> Candidates:
        """The candidates in the head's raw values."""
        cells = cells_of(raw, self.head.stride)
        sums = [values.sum(2) for values in (cells.box, cells.cls, cells.extra) if values is not None]
        finite = sum(sums[1:], sums[0]) * 0 == 0  # NaN and infinity times 0 are NaN
        all_scores = torch.where(finite, cells.cls.amax(2).sigmoid(), NO_CANDIDATE)
        scores, index = best_scores(all_scores, self.count)
        return candidates_of(self.head.rows_of(*cells.take(index)), self.layout, scores, all_scores)


def with_free_selection(network: nn.Module, layout: RawDetections, count: int, *, rows: bool = False) -> LayerGraph:
    """Return the network with a head that gives candidates instead of rows; with ``rows`` it gives both."""
    head = free_head(network)
    assert head is not None
    return with_head(network, FreeSelection(head, layout, count, rows=rows))
