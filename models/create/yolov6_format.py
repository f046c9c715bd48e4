"""YOLOv6 checkpoints in the original's own format, which its own code loads: a pickled tree of its modules.

What is written follows the newest commit of meituan/YOLOv6 (GPL-3.0; names and attributes, facts only), as its training
leaves a file: half precision, ``ema`` empty. Only the graphs of 0.3 and 0.4 are written so; the older ones had other
classes, and are written as state dicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from deploykit.models.create.original_format import StandIn, module_record, pickled, record_of
from deploykit.models.families.yolov6.bep import CSPSPPF, BepC3, BiFusion, BottleRep, Chain, SimSPPF, Transpose
from deploykit.models.families.yolov6.head import PROJECTED, DistanceHead
from deploykit.models.families.yolov6.network import YOLOv6
from deploykit.models.families.yolov6.rep_vgg import QARepVGG, RepVGG
from deploykit.models.layers.conv import Conv

__all__ = ["is_current", "yolov6_checkpoint"]

_COMMON = "yolov6.layers.common"
_KINDS: dict[type[nn.Module], str] = {
    Chain: f"{_COMMON}.RepBlock",
    BottleRep: f"{_COMMON}.BottleRep",
    BepC3: f"{_COMMON}.BepC3",
    BiFusion: f"{_COMMON}.BiFusion",
    Transpose: f"{_COMMON}.Transpose",
    nn.Sequential: "torch.nn.modules.container.Sequential",
    nn.ModuleList: "torch.nn.modules.container.ModuleList",
}
_HEAD = ("proj_conv", "stems", "cls_convs", "reg_convs", "cls_preds", "reg_preds")


def is_current(network: YOLOv6) -> bool:
    """Whether a network is one that the original's newest code has."""
    layout = network.config
    return layout.bifusion and not layout.objectness and not layout.biased


def yolov6_checkpoint(network: YOLOv6, names: Sequence[str], **beside: Any) -> bytes:
    """A checkpoint file; the same weights and torch version give the same bytes.

    Args:
        network: one for which :func:`is_current` holds.
        names: the class names, which the original does not write; it keeps and ignores them.
        beside: further entries of the file, plain values.
    """
    head = network.head
    assert isinstance(head, DistanceHead)
    parts = {"backbone": _backbone(network), "neck": _neck(network), "detect": _head(head)}
    model = module_record(
        "yolov6.models.yolo.Model", modules=parts, attributes={"stride": _strides(head), "names": list(names)}
    )
    empty = dict.fromkeys(("ema", "updates", "optimizer"))
    return pickled({"model": model, **empty, "epoch": -1, **beside})


def _backbone(network: YOLOv6) -> StandIn:
    layout = network.config
    four = layout.levels == 4
    name = "EfficientRep6" if four else "EfficientRep"
    if layout.stages[0].hidden:
        name = "CSPBepBackbone_P6" if four else "CSPBepBackbone"
    return _container(f"yolov6.models.efficientrep.{name}", network.backbone, {"fuse_P2": True})


def _neck(network: YOLOv6) -> StandIn:
    layout = network.config
    four = layout.levels == 4
    name = "RepBiFPANNeck6" if four else "RepBiFPANNeck"
    if layout.stages[0].hidden:
        name = "CSPRepBiFPANNeck_P6" if four else "CSPRepBiFPANNeck"
    return _container(f"yolov6.models.reppan.{name}", network.neck)


def _head(head: DistanceHead) -> StandIn:
    facts = {
        "nc": head.num_classes,
        "no": head.columns,
        "nl": head.num_levels,
        "grid": [torch.zeros(1)] * head.num_levels,
        "prior_prob": 0.01,
        "inplace": True,
        "stride": _strides(head),
        "use_dfl": head.reg_max > 0,
        "reg_max": PROJECTED - 1,
        "grid_cell_offset": 0.5,
        "grid_cell_size": 5.0,
    }
    modules = {name: _record(getattr(head, name)) for name in _HEAD}
    proj = nn.Parameter(head.proj.detach().half(), requires_grad=False)
    return module_record(
        "yolov6.models.effidehead.Detect", parameters={"proj": proj}, modules=modules, attributes=facts
    )


def _record(module: nn.Module) -> StandIn:
    """A module of ours, or of torch, as the original would have it."""
    if isinstance(module, Conv):
        kind = "ConvBNSiLU" if isinstance(module.act, nn.SiLU) else "ConvBNReLU"
        return module_record(f"{_COMMON}.{kind}", modules={"block": _conv(module)})
    if isinstance(module, RepVGG | QARepVGG):
        return _block(module)
    if isinstance(module, SimSPPF | CSPSPPF):
        return _pooling(module)
    if isinstance(module, Chain):
        return _container(_KINDS[Chain], module, {} if module.block is not None else {"block": None})
    if isinstance(module, BottleRep):
        return _container(_KINDS[BottleRep], module, {"shortcut": module.add})
    if type(module) in _KINDS:
        return _container(_KINDS[type(module)], module)
    return record_of(module)


def _container(kind: str, module: nn.Module, attributes: dict[str, Any] | None = None) -> StandIn:
    parameters = {name: nn.Parameter(p.detach().half()) for name, p in module.named_parameters(recurse=False)}
    modules = {name: _record(child) for name, child in module.named_children()}
    return module_record(kind, parameters=parameters, modules=modules, attributes=attributes)


def _conv(conv: Conv) -> StandIn:
    """The convolution inside of a wrapper, or one without an activation."""
    modules = {"conv": record_of(conv.conv), "bn": record_of(conv.bn)}
    name = {nn.SiLU: "silu", nn.ReLU: "relu"}.get(type(conv.act))
    if name is not None:
        modules["act"] = record_of(conv.act)
    return module_record(f"{_COMMON}.ConvModule", modules=modules, attributes={"activation_type": name})


def _block(block: RepVGG | QARepVGG) -> StandIn:
    conv = block.rbr_dense.conv
    assert isinstance(conv, nn.Conv2d)
    facts: dict[str, Any] = {"deploy": False, "groups": 1, "in_channels": conv.in_channels}
    facts["out_channels"] = conv.out_channels
    branches: dict[str, nn.Module | None]
    if isinstance(block, QARepVGG):
        kind = "QARepVGGBlockV2" if block.version == 2 else "QARepVGGBlock"
        facts["_id_tensor"] = None
        branches = {"rbr_identity": nn.Identity() if block.identity else None}
        if block.version == 2:
            branches["rbr_avg"] = nn.AvgPool2d(3, 1, 1) if block.mean else None
        branches["bn"] = block.bn
    else:
        kind, branches = "RepVGGBlock", {"rbr_identity": block.rbr_identity}
    modules = {"nonlinearity": record_of(block.act), "se": record_of(nn.Identity())}
    for name, branch in branches.items():  # a branch that is not there is no module to torch, but an attribute
        if branch is None:
            facts[name] = None
        else:
            modules[name] = record_of(branch)
    for name in ("rbr_dense", "rbr_1x1"):
        part: nn.Module = getattr(block, name)
        modules[name] = _conv(part) if isinstance(part, Conv) else record_of(part)
    return module_record(f"{_COMMON}.{kind}", modules=modules, attributes=facts)


def _pooling(pool: SimSPPF | CSPSPPF) -> StandIn:
    """The blocks of 0.4 that only wrap another, named after their activation."""
    silu = isinstance(pool.cv1.act, nn.SiLU)
    name = "CSPSPPF" if isinstance(pool, CSPSPPF) else "SPPF"
    inner = _container(f"{_COMMON}.{name}Module", pool)
    return module_record(f"{_COMMON}.{'' if silu else 'Sim'}{name}", modules={name.lower(): inner})


def _strides(head: DistanceHead) -> torch.Tensor:
    return torch.tensor(head.stride)
