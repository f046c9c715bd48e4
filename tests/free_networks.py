"""Small networks of all kinds of heads without anchors, with seeded weights that find a lot."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.families.ultralytics.heads.detect import Branch, FreeDetect
from deploykit.models.families.ultralytics.spec import reference_of
from deploykit.models.registry import ReferenceModel

__all__ = ["FREE", "free_network"]

FREE: dict[str, tuple[list[Any], bool, dict[str, Any]]] = {
    "detect": (["Detect", ["nc"]], False, {}),
    "detect26": (["Detect", ["nc"]], True, {}),
    "v10": (["v10Detect", ["nc"]], False, {}),
    "pose": (["Pose", ["nc", "kpt_shape"]], False, {"kpt_shape": (4, 3)}),
    "face": (["Pose", ["nc", "kpt_shape"]], False, {"kpt_shape": (5, 2)}),
    "pose26": (["Pose26", ["nc", "kpt_shape"]], True, {"kpt_shape": (4, 3)}),
    "segment": (["Segment", ["nc", 6, 8]], False, {}),
    "segment26": (["Segment26", ["nc", 6, 8]], True, {}),
    "oriented": (["OBB", ["nc", 1]], False, {}),
    "oriented26": (["OBB26", ["nc", 1]], True, {}),
}
"""Name -> the head's row, whether it is of YOLO26, and what else its description says."""


def free_network(
    name: str, *, classes: int = 3, seed: int = 0, bias: float = 3.0, branch: Branch | None = None
) -> ReferenceModel:
    """A network of three levels; ``bias`` is added to the scores' logits. ``branch``: None: what a head has itself."""
    head, newest, more = FREE[name]
    if newest:
        more = {**more, "reg_max": 1, "dual": True}
    rows = (
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "Conv", [24, 3, 2]],
        [-1, 1, "Conv", [32, 3, 2]],
        [[2, 3, 4], 1, *head],
    )
    description = Description(rows, classes, strides=(8, 16, 32), **more)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        graph = build_graph(description)
        randomise(graph)
    for module in (m for m in graph.modules() if isinstance(m, FreeDetect)):
        _raise_scores(module, bias)
    head_of = graph.model[-1]
    if branch is not None and isinstance(head_of, FreeDetect):
        graph.model[-1] = head_of.with_branch(branch)
    graph = graph.eval().requires_grad_(False)
    return reference_of(graph, description, f"{name}_few", "few", 64)


@torch.no_grad()
def _raise_scores(head: FreeDetect, bias: float) -> None:
    for branch in ("cv3", "one2one_cv3"):
        for level in getattr(head, branch, ()):
            last = level[-1]
            assert isinstance(last, nn.Conv2d)
            assert last.bias is not None
            last.bias += bias
