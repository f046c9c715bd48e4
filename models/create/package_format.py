"""Checkpoints as the ultralytics package saves them: a pickled tree of its modules, which its own code loads.

What is written follows files of release 8.4.190 (AGPL-3.0; their structure, facts only): half precision, the network
under ``model``, its description in it. What only training uses is left out, as in files that were saved folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deploykit.models.create.original_format import (
    ORIGINALS,
    Original,
    StandIn,
    module_record,
    pickled,
    record_of,
    saved_rows,
)
from deploykit.models.families.ultralytics.blocks import attention, c2f, cib, elan, psa
from deploykit.models.families.ultralytics.description import HEADS, Description
from deploykit.models.families.ultralytics.heads import points
from deploykit.models.families.ultralytics.heads.classify import Classify
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.oriented import Oriented, Oriented26
from deploykit.models.families.ultralytics.heads.pose import FreePose, Pose26
from deploykit.models.families.ultralytics.heads.segment import Proto, Proto26, Segment, Segment26
from deploykit.models.layers import csp, pool
from deploykit.models.layers.conv import Concat, Conv, DWConv, FoldingSequential
from deploykit.models.layers.focus import Focus
from deploykit.models.yolo_graph.description import MAX_CHANNELS
from deploykit.models.yolo_graph.layer_graph import LayerGraph

__all__ = ["PACKAGE_CLASSES", "package_checkpoint"]

MODULES = "ultralytics.nn.modules"
NETWORKS = {
    "detect": ("DetectionModel", "detect"),
    "instances": ("SegmentationModel", "segment"),
    "keypoints": ("PoseModel", "pose"),
    "oriented": ("OBBModel", "obb"),
    "classify": ("ClassificationModel", "classify"),
}
"""Our task -> the package's class, and its name of the task."""


def _block(kind: str, *names: str) -> Original:
    """A block with some of its attributes, which are called as ours."""
    return Original(f"{MODULES}.block.{kind}", lambda m: {name: getattr(m, name) for name in names})


def _distribution(m: points.Distribution) -> dict[str, nn.Module | None]:
    """The bins as the weight of a convolution, which is what the package has."""
    conv = nn.Conv2d(m.bins, 1, 1, bias=False)
    conv.weight = m.conv.weight
    return {"conv": conv}


def _numbers(m: FreeDetect) -> dict[str, Any]:
    numbers = {"nc": m.num_classes, "nl": m.num_levels, "reg_max": m.reg_max, "no": m.num_classes + 4 * m.reg_max}
    more: dict[str, Any] = {}
    if isinstance(m, FreePose):
        more = {"kpt_shape": list(m.kpt_shape), "nk": m.extras}
    if isinstance(m, Pose26):
        more["nk_sigma"] = 2 * m.kpt_shape[0]
    if isinstance(m, Segment):
        more = {"nm": m.num_masks, "npr": m.proto.cv1.conv.out_channels}
    if isinstance(m, Oriented):
        more = {"ne": m.extras}
    return {**numbers, **more, "stride": torch.tensor(m.stride, dtype=torch.float32), "inplace": True}


def _parts(m: FreeDetect) -> dict[str, nn.Module | None]:
    """What a head of the package has and ours has not."""
    parts: dict[str, nn.Module | None] = {} if m.reg_max > 1 else {"dfl": nn.Identity()}
    if isinstance(m, Pose26):
        sigmas = ("cv4_sigma", "one2one_cv4_sigma") if m.dual else ("cv4_sigma",)
        parts |= dict.fromkeys(("flow_model", *sigmas))
    return parts


def _head(kind: str) -> Original:
    return Original(f"{MODULES}.head.{kind}", _numbers, _parts)


def _repconv(m: elan.RepConv) -> dict[str, Any]:
    conv = m.conv1.conv
    return {"g": conv.groups, "c1": conv.in_channels, "c2": conv.out_channels, "bn": None}


def _area_attention(m: attention.AAttn) -> dict[str, Any]:
    names = ("area", "num_heads", "head_dim")
    return {**{name: getattr(m, name) for name in names}, "all_head_dim": m.num_heads * m.head_dim}


PACKAGE_CLASSES: dict[type[nn.Module], Original] = {
    Conv: Original(f"{MODULES}.conv.Conv"),
    DWConv: Original(f"{MODULES}.conv.DWConv"),
    Focus: Original(f"{MODULES}.conv.Focus"),
    Concat: Original(f"{MODULES}.conv.Concat", lambda m: {"d": m.dimension}),
    elan.RepConv: Original(f"{MODULES}.conv.RepConv", _repconv),
    csp.Bottleneck: _block("Bottleneck", "add"),
    c2f.Bottleneck: _block("Bottleneck", "add"),
    c2f.C1: _block("C1"),
    c2f.C2: _block("C2", "c"),
    c2f.C2f: _block("C2f", "c"),
    c2f.C3: _block("C3"),
    c2f.C3k: _block("C3k"),
    c2f.C3x: _block("C3x"),
    c2f.C3k2: _block("C3k2", "c"),
    c2f.SPP: _block("SPP"),
    c2f.SPPF: _block("SPPF", "n", "add"),
    psa.Attention: _block("Attention", "num_heads", "head_dim", "key_dim", "scale"),
    psa.PSABlock: _block("PSABlock", "add"),
    attention.PSA: _block("PSA", "c"),
    attention.C2PSA: _block("C2PSA", "c"),
    attention.C2fPSA: _block("C2fPSA", "c"),
    attention.AAttn: Original(f"{MODULES}.block.AAttn", _area_attention),
    attention.ABlock: _block("ABlock"),
    attention.A2C2f: Original(f"{MODULES}.block.A2C2f", lambda m: {"gamma": None} if m.gamma is None else {}),
    cib.SCDown: _block("SCDown"),
    cib.RepVGGDW: Original(f"{MODULES}.block.RepVGGDW", lambda m: {"dim": m.conv.conv.out_channels}),
    cib.CIB: _block("CIB", "add"),
    cib.C2fCIB: _block("C2fCIB", "c"),
    elan.RepBottleneck: _block("RepBottleneck", "add"),
    elan.RepCSP: _block("RepCSP"),
    elan.RepNCSPELAN4: _block("RepNCSPELAN4", "c"),
    elan.ELAN1: _block("ELAN1", "c"),
    elan.AConv: _block("AConv"),
    elan.ADown: _block("ADown", "c"),
    elan.SPPELAN: _block("SPPELAN", "c"),
    elan.CBLinear: Original(f"{MODULES}.block.CBLinear", lambda m: {"c2s": list(m.widths)}),
    elan.CBFuse: Original(f"{MODULES}.block.CBFuse", lambda m: {"idx": list(m.idx)}),
    points.Distribution: Original(f"{MODULES}.block.DFL", lambda m: {"c1": m.bins}, _distribution),
    Proto: _block("Proto"),
    Proto26: Original(f"{MODULES}.block.Proto26", modules=lambda m: {"semseg": None}),
    FreeDetect: _head("Detect"),
    Segment: _head("Segment"),
    Segment26: _head("Segment26"),
    FreePose: _head("Pose"),
    Pose26: _head("Pose26"),
    Oriented: _head("OBB"),
    Oriented26: _head("OBB26"),
    Classify: Original(f"{MODULES}.head.Classify"),
    **{kind: ORIGINALS[kind] for kind in (pool.ZeroPad2d, FoldingSequential)},
}
"""Our modules -> the package's; torch's own stay themselves."""


def package_checkpoint(
    graph: LayerGraph, description: Description, name: str, names: Sequence[str], size: int, **beside: Any
) -> bytes:
    """A checkpoint file as the package writes one; the same weights and torch version give the same bytes.

    Args:
        graph: the network, not folded, with both branches where its head has two.
        description: what it was built from.
        name: the published one, with hyphens.
        names: the class names.
        size: pixels a side that it is used with.
        beside: further entries of the file, plain values.
    """
    originals = _originals(graph, description)
    layers: list[StandIn] = []
    for i, (layer, row) in enumerate(zip(graph.model, description.rows, strict=True)):
        record = record_of(layer, originals)
        kind = type(record)
        parameters = sum(p.numel() for p in layer.parameters())
        record.__dict__.update(i=i, f=row[0], type=f"{kind.__module__}.{kind.__qualname__}", np=parameters)
        layers.append(record)
    sequential = module_record(
        "torch.nn.modules.container.Sequential", modules={str(i): m for i, m in enumerate(layers)}
    )
    network, task = NETWORKS[HEADS[description.head]]
    yaml = _yaml(description, f"{name.removesuffix('u')}.yaml")
    arguments = {"task": task, "mode": "train", "model": yaml["yaml_file"], "imgsz": size}
    attributes = {
        "yaml": yaml,
        "save": saved_rows(description.rows),
        "names": dict(enumerate(names)),
        "inplace": True,
        "stride": _strides(graph),
        "nc": description.num_classes,
        "args": arguments,
        "task": task,
        **({"kpt_shape": list(description.kpt_shape)} if "kpt_shape" in yaml else {}),
    }
    model = module_record(f"ultralytics.nn.tasks.{network}", modules={"model": sequential}, attributes=attributes)
    unused = dict.fromkeys(("best_fitness", "ema", "updates", "optimizer"))
    return pickled({"epoch": -1, **unused, "model": model, "train_args": arguments, **beside})


def _originals(graph: LayerGraph, description: Description) -> dict[type[nn.Module], Original]:
    """The package's classes in a network with this head."""
    kind = type(graph.model[-1])
    head = replace(PACKAGE_CLASSES[kind], kind=f"{MODULES}.head.{description.head}")
    # YOLOv10 has depthwise convolutions in its head alone, where the package makes them of plain ones.
    plain: dict[type[nn.Module], Original] = {DWConv: PACKAGE_CLASSES[Conv]} if description.head == "v10Detect" else {}
    return {**PACKAGE_CLASSES, **plain, kind: head}


def _strides(graph: LayerGraph) -> Tensor:
    """Those of the head's levels; a classifier has one of 1."""
    head = graph.model[-1]
    return torch.tensor(head.stride if isinstance(head, FreeDetect) else (1,), dtype=torch.float32)


def _yaml(description: Description, file: str) -> dict[str, Any]:
    """The description as the package has it in a network. Where its backbone ends makes no difference."""
    d = description
    rows = [[origin, repeats, kind, list(arguments)] for origin, repeats, kind, arguments in d.rows]
    limit = 1024 if d.max_channels == MAX_CHANNELS else d.max_channels  # rows have no more
    scales: dict[str, Any] = {"depth_multiple": d.depth, "width_multiple": d.width}
    if d.size:
        scales = {"scales": {d.size: [d.depth, d.width, limit]}, "scale": d.size}
    return {
        "nc": d.num_classes,
        **scales,
        **({"kpt_shape": list(d.kpt_shape)} if d.head.startswith("Pose") else {}),
        **({"reg_max": d.reg_max} if d.reg_max == 1 else {}),
        **({"end2end": True} if d.dual and d.head != "v10Detect" else {}),
        "backbone": rows[:-1],
        "head": rows[-1:],
        "yaml_file": file,
        "channels": d.channels,
    }
