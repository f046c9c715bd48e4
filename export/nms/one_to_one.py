"""Networks that choose their detections from rows and need no NMS, and the same networks without that choice.

The choice hides most rows. So an export is verified on all of them, as the graph that is exported computes them, and
lower precisions are measured on them; the choice follows by :mod:`deploykit.export.parity.one_to_one`.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

from torch import Tensor, nn

from deploykit.models.families.ultralytics.heads.detect import MOST_DETECTIONS, FreeDetect
from deploykit.models.families.ultralytics.heads.points import cells_of
from deploykit.models.registry import ReferenceModel
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import EndToEndRows, ModelSpec, RawDetections

__all__ = [
    "MOST_DETECTIONS",
    "free_head",
    "model_of_rows",
    "rows_chosen_from",
    "with_head",
    "with_rows",
    "without_choice",
]

ROWS = "rows"
"""The name of the output of the rows before the choice."""


def free_head(network: nn.Module) -> FreeDetect | None:
    """The head without anchors of a network; None: it has another one."""
    head = network.model[-1] if isinstance(network, LayerGraph) else None
    return head if isinstance(head, FreeDetect) else None


def with_head(network: nn.Module, head: nn.Module) -> LayerGraph:
    """The same network with another head in place of its own."""
    graph = cast(LayerGraph, network)
    new = copy.copy(graph)
    new._modules = {**graph._modules, "model": nn.Sequential(*list(graph.model)[:-1], head)}
    return new


def rows_chosen_from(spec: ModelSpec, network: nn.Module) -> RawDetections | None:
    """The layout of the rows from which a network chooses its detections; None: it gives all that it computes."""
    head, chosen = free_head(network), cast(EndToEndRows, spec.output)
    if head is None or not head.chooses:
        return None
    wider = head.num_classes - 2  # a column for each class in place of a score and a class

    def moved(span: tuple[int, int] | None) -> tuple[int, int] | None:
        return None if span is None else (span[0] + wider, span[1] + wider)

    return RawDetections(
        name=ROWS,
        obj=None,
        cls=(4, 4 + head.num_classes),
        keypoints=moved(chosen.keypoints),
        kpt_dims=chosen.kpt_dims,
        coefficients=moved(chosen.coefficients),
        prototypes=chosen.prototypes,
        angle=None if chosen.angle is None else moved((chosen.angle, chosen.angle + 1)),
    )


def without_choice(network: nn.Module) -> LayerGraph:
    """The network that gives every row."""
    head = free_head(network)
    assert head is not None
    return with_head(network, head.with_every_row())


def model_of_rows(model: ReferenceModel, layout: RawDetections) -> ReferenceModel:
    """The model that gives every row, which are of ``layout``."""
    return replace(model, module=without_choice(model.module), spec=replace(model.spec, output=layout))


def with_rows(network: nn.Module) -> LayerGraph:
    """The network that gives every row, then the outputs that it has anyway."""
    head = free_head(network)
    assert head is not None
    return with_head(network, _RowsAndBest(head))


class _RowsAndBest(nn.Module):
    def __init__(self, head: FreeDetect) -> None:
        super().__init__()
        self.head = head

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        cells = cells_of(self.head.raw(features), self.head.stride)
        return self.head.rows_of(*cells), self.head.best_of(cells), *self.head.others(features)
