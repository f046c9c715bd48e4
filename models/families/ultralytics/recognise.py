"""Which network of the ultralytics package a file holds: by its description, or by its tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.ultralytics.as_saved import folded_as_saved
from deploykit.models.families.ultralytics.build import build_graph, repeats_of, scaled_width
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.families.ultralytics.saved import Saved
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.yolo_graph.description import read_row
from deploykit.models.yolo_graph.family import custom_name

__all__ = ["description_by_tensors", "published_name"]

BY_LAYER = (
    ("A2C2f", "YOLO12"), ("C3k2", "YOLO11"), ("C2fCIB", "YOLOv10"), ("SCDown", "YOLOv10"), ("RepNCSPELAN4", "YOLOv9"),
    ("ELAN1", "YOLOv9"), ("C2f", "YOLOv8"), ("C2", "YOLOv8"), ("C3", "YOLOv5u"), ("Bottleneck", "YOLOv3u"),
)  # fmt: skip
"""A layer that a family has, and those before it in this list have not -> the family."""

Signature = tuple[tuple[Any, ...], ...]


def published_name(description: Description, found: Mapping[str, Tensor], checkpoint: Checkpoint) -> tuple[str, str]:
    """The family and the name of the network: the published one, or what a custom one calls itself."""
    signature = _signature(description, found)
    alike = [name for name, known in _signatures().items() if known == signature]
    if alike:
        own = str((checkpoint.yaml or {}).get("yaml_file") or "").rpartition("/")[2].removesuffix(".yaml")
        name = next((n for n in alike if n.replace("_", "-") == own), alike[0])
        return variants()[name].family, name
    family = _family(description)
    return family, custom_name(checkpoint, variants(), f"{family.lower()}-custom")


def description_by_tensors(found: Mapping[str, Tensor]) -> Description | None:
    """The description of the network that a state dict is of: a published layer list, of any width and depth.

    None: it is of none of them. Repeats, widths, classes and keypoints are read off the tensors when it is built.
    """
    saved = Saved(found)
    head = saved.head
    path = f"model.{head}"
    one2one = "one2one_" if saved.has(f"{path}.one2one_cv2") and not saved.has(f"{path}.cv2") else ""
    if not saved.shape(f"{path}.linear.weight") and not saved.shape(f"{path}.{one2one}cv2.0.2.weight"):
        return None
    kind = _head_kind(saved, path, one2one)
    shapes = {key: tuple(t.shape) for key, t in found.items()}
    for name in _candidates(kind, head):
        description = variants()[name].description
        if kind.startswith("Pose"):
            description = _with_keypoints(description, saved, path, one2one)
        try:
            with torch.device("meta"):
                graph = build_graph(description, found)
                folded_as_saved(graph, found)
        except CheckpointError:
            continue
        own = {key: tuple(t.shape) for key, t in graph.state_dict().items()}
        if own.keys() - shapes.keys() <= {key for key in own if key.endswith("num_batches_tracked")} and all(
            own.get(key) == shape for key, shape in shapes.items()
        ):
            return description
    return None


def _head_kind(saved: Saved, path: str, prefix: str) -> str:
    """The name of the head that has these tensors."""
    if saved.shape(f"{path}.linear.weight"):
        return "Classify"
    newer = (saved.shape(f"{path}.{prefix}cv2.0.2.weight") or (0,))[0] == 4
    if saved.has(f"{path}.proto"):
        return "Segment26" if saved.has(f"{path}.proto.feat_refine") else "Segment"
    if saved.has(f"{path}.{prefix}cv4_kpts"):
        return "Pose26"
    values = (saved.shape(f"{path}.{prefix}cv4.0.2.weight") or (0,))[0]
    if values:
        oriented = "OBB26" if newer else "OBB"
        return oriented if values == 1 else "Pose"
    return "Detect"


def _candidates(kind: str, head: int) -> list[str]:
    """The variants with this head as their layer of this number; one of those whose layers are the same.

    Widths, repeats and what depends on the size are read off the tensors.
    """
    found: dict[str, str] = {}
    for name, variant in variants().items():
        rows = variant.description.rows
        same = rows[-1][2] == kind or (kind == "Detect" and rows[-1][2] == "v10Detect")
        if same and len(rows) - 1 == head:
            found.setdefault(repr(rows), name)
    return list(found.values())


def _with_keypoints(description: Description, saved: Saved, path: str, prefix: str) -> Description:
    last = f"{path}.{prefix}cv4_kpts.0" if description.head == "Pose26" else f"{path}.{prefix}cv4.0.2"
    values = (saved.shape(f"{last}.weight") or (51,))[0]
    return replace(description, kpt_shape=(values // 3, 3) if values % 3 == 0 else (values // 2, 2))


def _family(description: Description) -> str:
    kinds = {str(row[2]) for row in description.rows}
    if "C3k2" in kinds and description.reg_max == 1:
        return "YOLO26"
    return next((family for kind, family in BY_LAYER if kind in kinds), "YOLO of the ultralytics package")


@cache
def _signatures() -> dict[str, Signature]:
    return {name: _signature(variant.description, {}) for name, variant in variants().items()}


def _signature(description: Description, found: Mapping[str, Tensor]) -> Signature:
    """What tells a network from others: what each layer is, what feeds it, its width and its repeats."""
    saved = Saved(found)
    rows: list[tuple[Any, ...]] = []
    for i, row in enumerate(description.rows):
        sources, repeats, kind, arguments = read_row(i, row)
        head = i == len(description.rows) - 1
        width = 0 if head else saved.outputs(kind, f"model.{i}") or scaled_width(kind, arguments, description)
        rows.append((sources, kind, repeats_of(repeats, description), width))
    return (*rows, (description.reg_max,))
