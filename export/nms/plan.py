"""The plan of NMS in an export: which module is traced, and what is added to its graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir
import torch
from torch import Tensor, nn

from deploykit.errors import UsageError
from deploykit.export.nms.candidates import Candidates, RowsAndSelection, RowSelection, with_candidate_head
from deploykit.export.nms.decode_node import append_decode, up_to_raw_head
from deploykit.export.nms.free_candidates import with_free_selection
from deploykit.export.nms.graph import append_nms, append_plugin, candidates_for, check_thresholds
from deploykit.export.nms.layouts import detections_layout
from deploykit.export.nms.one_to_one import MOST_DETECTIONS, free_head, rows_chosen_from, with_rows
from deploykit.export.options import NmsMode
from deploykit.export.outputs import export_adapter_of
from deploykit.models.families.vitdet.mask_rcnn import with_thresholds
from deploykit.models.layers.anchor_head import Detect
from deploykit.models.yolo_graph.layer_graph import LayerGraph
from deploykit.spec import ModelSpec, NmsOutputs, RawDetections, Thresholds

__all__ = ["NmsPlan", "plan_nms"]


@dataclass(frozen=True)
class NmsPlan:
    """How an export does NMS.

    Attributes:
        mode: what is added to the graph.
        layout: the layout of the rows before NMS; None if no NMS follows.
        outputs: the names of the outputs that are traced.
        candidates: how many rows NMS gets; 0: all of them.
        decodes: whether a node decodes the rows too, so that the traced module ends before the decode.
        inside: the thresholds of a network with NMS of its own; ``layout`` is that of its detections then.
        chosen: how many detections at most the network chooses from rows of ``layout`` without NMS; 0: it does not.
    """

    mode: NmsMode
    layout: RawDetections | None
    outputs: tuple[str, ...]
    candidates: int
    decodes: bool = False
    inside: Thresholds | None = None
    chosen: int = 0

    @property
    def has_own_operators(self) -> bool:
        """Whether what is traced has operators of ours, which only the dynamo exporter translates."""
        return bool(self.candidates or self.chosen or self.inside)

    @property
    def rows(self) -> RawDetections:
        """The layout of the rows before NMS; only for a plan in which NMS follows rows."""
        assert self.layout is not None
        return self.layout

    def module(self, fused: nn.Module) -> nn.Module:
        """Return the module to trace: the network, or the network up to its candidates or its head's raw values."""
        if self.inside is not None:
            return with_thresholds(fused, self.inside)
        if self.decodes:
            levels = up_to_raw_head(fused)
            assert levels is not None
            return levels[0]
        if not self.candidates:
            return fused
        if free_head(fused) is not None:
            return _Some(with_free_selection(fused, self.rows, self.candidates), self._places())
        if isinstance(fused, LayerGraph) and isinstance(fused.model[-1], Detect):
            return _Some(with_candidate_head(fused, self.rows, self.candidates), self._places())
        return _Some(nn.Sequential(fused, RowSelection(self.rows, self.candidates)), self._places())

    def module_with_rows(self, fused: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
        """Return a module that gives the raw rows as well, from the same layers, and the names of all its outputs.

        A network with NMS of its own has no such rows, and gives its detections alone.
        """
        if self.layout is None or self.inside is not None or self.layout.name in self.outputs:
            return self.module(fused), self.outputs
        names = (self.layout.name, *self.outputs)
        if self.chosen:
            return with_rows(fused), names
        if self.decodes:
            levels = up_to_raw_head(fused, rows=True)
            assert levels is not None
            return levels[0], names
        places = (0, *(1 + place for place in self._places()))
        if free_head(fused) is not None:
            return _Some(with_free_selection(fused, self.rows, self.candidates, rows=True), places), names
        if isinstance(fused, LayerGraph) and isinstance(fused.model[-1], Detect):
            return _Some(with_candidate_head(fused, self.rows, self.candidates, rows=True), places), names
        beside = RowsAndSelection(RowSelection(self.rows, self.candidates))
        return _Some(nn.Sequential(fused, beside), places), names

    def _places(self) -> tuple[int, ...]:
        """Where the traced outputs are among the candidates' parts."""
        parts = ("prototypes" if name == self.rows.prototypes else name for name in self.outputs)
        return tuple(Candidates._fields.index(part) for part in parts)

    def append(self, graph: ir.Model, spec: ModelSpec, fused: nn.Module) -> None:
        """Add NMS to the graph that was traced from ``fused``."""
        if self.decodes:
            append_decode(graph, fused, self.rows)
        if self.mode == "plugin":
            append_plugin(graph, self.rows, spec)
        elif self.mode != "none":
            append_nms(graph, self.mode, spec, self.candidates)


def plan_nms(spec: ModelSpec, mode: NmsMode, thresholds: Thresholds, fused: nn.Module) -> tuple[NmsPlan, ModelSpec]:
    """Return the plan for a network, and the spec of what is exported.

    Raises:
        UsageError: the thresholds cannot be stored in a graph, the shape is dynamic (its number of rows is not known),
            the rows need more than NMS, or the network already has NMS inside.
    """
    spec = replace(spec, thresholds=thresholds)
    if spec.output.nms_inside and mode == "none" and not spec.output.thresholds_inside:
        layout = rows_chosen_from(spec, fused)
        return NmsPlan(mode, layout, spec.output_names, 0, chosen=MOST_DETECTIONS if layout else 0), spec
    if spec.output.thresholds_inside:
        if mode != "none":
            raise UsageError(f"--nms {mode} needs raw rows, and this network already has NMS inside: leave --nms out")
        check_thresholds(thresholds)
        return NmsPlan(mode, detections_layout(spec), spec.output_names, 0, inside=thresholds), spec
    if mode == "none":
        return NmsPlan(mode, None, spec.output_names, 0), spec
    layout = export_adapter_of(spec).rows_for_nms(mode)
    check_thresholds(thresholds)
    keypoints, angles = ("keypoints" if spec.keypoints else None), ("angles" if layout.angle else None)
    coefficients = "coefficients" if layout.coefficients else None
    output = NmsOutputs(keypoints=keypoints, angles=angles, coefficients=coefficients, prototypes=layout.prototypes)
    given = replace(spec, output=output)
    if mode == "plugin":
        levels = up_to_raw_head(fused)
        traced = levels[1] if levels else tuple(t.name for t in layout.tensors(spec))
        return NmsPlan(mode, layout, traced, 0, decodes=levels is not None), given
    if spec.input.dynamic == "shape":
        raise UsageError(f"--nms {mode} needs a fixed image size: --dynamic shape goes with --nms none or plugin")
    rows = _rows(fused, spec)
    return NmsPlan(mode, layout, candidates_for(output), min(thresholds.pre_nms_topk, rows)), given


def _rows(fused: nn.Module, spec: ModelSpec) -> int:
    """Count the rows that the network gives for an image."""
    height, width = spec.input.size
    if isinstance(fused, LayerGraph) and isinstance(fused.model[-1], Detect):
        head = fused.model[-1]
        return head.num_anchors * sum((height // s) * (width // s) for s in head.stride)
    with torch.inference_mode():
        given = fused(torch.zeros(1, spec.input.channels, height, width))
        return int((given if isinstance(given, Tensor) else given[0]).shape[1])


class _Some(nn.Module):
    """Gives some outputs of a module, and so leaves out those of keypoints if there are none."""

    def __init__(self, module: nn.Module, places: tuple[int, ...]) -> None:
        super().__init__()
        self.module, self.places = module, places

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.module(images)
        return tuple(found[place] for place in self.places)
