"""Which network of the ultralytics package a file holds: by its description, or by its tensors alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.ultralytics.as_saved import folded_as_saved
from deploykit.models.families.ultralytics.build import build_graph, repeats_of, saved_count, scaled_width
from deploykit.models.families.ultralytics.description import COCO_POSE, Description
from deploykit.models.families.ultralytics.saved import Saved
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.yolo_graph.description import MAX_CHANNELS, read_row
from deploykit.models.yolo_graph.family import custom_name

__all__ = ["described_by_tensors", "published_name"]

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
    return family, custom_name(checkpoint, variants(), f"{family.lower().replace(' ', '-')}-custom")


def described_by_tensors(
    found: Mapping[str, Tensor], everything: Mapping[str, Tensor]
) -> tuple[Description, tuple[str, ...]] | None:
    """The description of the network that a state dict is of, and what it leaves open, a sentence each.

    It is a published layer list, of any width and depth: repeats, widths, classes and keypoints are read off the
    tensors when it is built. None: it is of none of them.

    Args:
        found: the tensors of the network.
        everything: the same with those that only training reads.
    """
    saved = Saved(found)
    head = saved.head
    path = f"model.{head}"
    one2one = "one2one_" if saved.has(f"{path}.one2one_cv2") and not saved.has(f"{path}.cv2") else ""
    if not saved.shape(f"{path}.linear.weight") and not saved.shape(f"{path}.{one2one}cv2.0.2.weight"):
        return None
    kind = _head_kind(saved, path, one2one)
    forms = _keypoint_forms(Saved(everything), path, one2one) if kind.startswith("Pose") else [COCO_POSE]
    for name in _candidates(kind, head, _predicts_distances(saved, path, one2one)):
        described = variants()[name].description
        fitting = [d for d in (replace(described, kpt_shape=form) for form in forms) if _fits(d, found)]
        if fitting:
            return fitting[0], _open_keypoints(fitting)
    return None


def _fits(description: Description, found: Mapping[str, Tensor]) -> bool:
    """Whether a network of this description has just these tensors."""
    try:
        with torch.device("meta"):
            graph = build_graph(description, found)
            folded_as_saved(graph, found)
    except CheckpointError:
        return False
    own = {key: tuple(t.shape) for key, t in graph.state_dict().items()}
    shapes = {key: tuple(t.shape) for key, t in found.items()}
    missing = own.keys() - shapes.keys()
    return all(key.endswith("num_batches_tracked") for key in missing) and all(
        own.get(key) == shape for key, shape in shapes.items()
    )


def _head_kind(saved: Saved, path: str, prefix: str) -> str:
    """The name of the head that has these tensors."""
    if saved.shape(f"{path}.linear.weight"):
        return "Classify"
    if saved.has(f"{path}.proto"):
        return "Segment26" if saved.has(f"{path}.proto.feat_refine") else "Segment"
    if saved.has(f"{path}.{prefix}cv4_kpts"):
        return "Pose26"
    values = (saved.shape(f"{path}.{prefix}cv4.0.2.weight") or (0,))[0]
    if values:
        oriented = "OBB26" if _predicts_distances(saved, path, prefix) else "OBB"
        return oriented if values == 1 else "Pose"
    return "Detect"


def _predicts_distances(saved: Saved, path: str, prefix: str) -> bool:
    """Whether the head predicts distances themselves, as YOLO26's do, and not distributions over them."""
    return saved.shape(f"{path}.{prefix}cv2.0.2.weight")[:1] == (4,)


def _candidates(kind: str, head: int, distances: bool) -> list[str]:
    """The variants with this head as their layer of this number; one of those whose layers are the same.

    Widths, repeats and what depends on the size are read off the tensors. YOLO26 could be a YOLO11 by them, but for
    its ``distances``: see :func:`_predicts_distances`.
    """
    found: dict[str, str] = {}
    for name, variant in variants().items():
        rows = variant.description.rows
        same = rows[-1][2] == kind or (kind == "Detect" and rows[-1][2] == "v10Detect")
        if same and len(rows) - 1 == head and (variant.description.reg_max == 1) == distances:
            found.setdefault(repr(rows), name)
    return list(found.values())


def _keypoint_forms(saved: Saved, path: str, prefix: str) -> list[tuple[int, int]]:
    """The keypoints that so many outputs can be, and how many values each has; three before two."""
    pose26 = saved.has(f"{path}.{prefix}cv4_kpts")
    values = (saved.shape(f"{path}.{prefix}{'cv4_kpts.0' if pose26 else 'cv4.0.2'}.weight") or (0,))[0]
    forms = [(values // d, d) for d in (3, 2) if values % d == 0 and 1 <= values // d <= MAX_CHANNELS]
    deviations = saved.shape(f"{path}.{prefix}cv4_sigma.0.weight")  # of x and y of each, where training's are left
    return [form for form in forms if not deviations or 2 * form[0] == deviations[0]]


def _open_keypoints(fitting: Sequence[Description]) -> tuple[str, ...]:
    if len(fitting) == 1:
        return ()
    (count, dims), (others, fewer) = (description.kpt_shape for description in fitting)
    return (
        f"{count} keypoints of {dims} values (x, y, visibility), and not {others} of {fewer}: no tensor tells; the "
        "package's own .pt file does",
    )


def _family(description: Description) -> str:
    kinds = {str(row[2]) for row in description.rows}
    if "C3k2" in kinds and description.reg_max == 1:
        return "YOLO26"
    return next((family for kind, family in BY_LAYER if kind in kinds), "YOLO")


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
        count = saved_count(saved, kind, f"model.{i}") or repeats_of(repeats, description)
        rows.append((sources, kind, count, width))
    return (*rows, (description.reg_max,))
