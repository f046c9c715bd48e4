"""Checkpoints in the original projects' own format: a pickled tree of their modules, which their own code loads.

YOLOv7, YOLOv5, YOLO-Pose and KaPao save the module itself: a pickle that names their classes (``models.yolo.Model``,
``models.common.Conv``) and holds each one's attributes. Here those classes are inert stand-ins with the right names,
and the pickler writes a stand-in's name without looking whether it can be imported. What is written follows the
released yolov7-tiny.pt (WongKinYiu/yolov7, GPL-3.0; its structure, facts only): half precision, training mode.
"""

from __future__ import annotations

import pickle
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploykit.models.families.ultralytics.heads.classify import Classify
from deploykit.models.families.yolov5 import LAYERS
from deploykit.models.layers import lite
from deploykit.models.layers.anchor_head import Detect, IAuxDetect, IDetect, IKeypoint, Keypoint, Proto, Segment
from deploykit.models.layers.conv import Add, Concat, Conv, DownC, DWConv, FoldingSequential, ReOrg, Shortcut
from deploykit.models.layers.csp import C3, Bottleneck, BottleneckCSP
from deploykit.models.layers.focus import ConvFocus, Focus
from deploykit.models.layers.ghost import C3Ghost, GhostBottleneck, GhostConv
from deploykit.models.layers.pool import MP, SP, SPF, SPP, SPPCSPC, SPPF, SPPFCSPC, ZeroPad2d
from deploykit.models.layers.pose_object import PoseObject
from deploykit.models.layers.rep import ImplicitA, ImplicitM, RepConv
from deploykit.models.yolo_graph.classifier import CLASSIFIER
from deploykit.models.yolo_graph.description import NOT_GIVEN_ACT, GraphConfig, Row
from deploykit.models.yolo_graph.layer_graph import LayerGraph

__all__ = [
    "ORIGINALS",
    "Original",
    "StandIn",
    "has_original_format",
    "module_record",
    "original_checkpoint",
    "pickled",
    "record_of",
    "saved_rows",
]


@dataclass(frozen=True)
class Original:
    """The original's class for one of ours, and what that keeps beside tensors and submodules (their names agree).

    ``modules``: submodules that ours lacks, or has in another form; None where the original has an empty place.
    """

    kind: str
    attributes: Callable[[Any], dict[str, Any]] = lambda module: {}
    modules: Callable[[Any], dict[str, nn.Module | None]] = lambda module: {}


def _repconv(m: RepConv) -> dict[str, Any]:
    conv = m.rbr_dense[0]
    numbers = {"groups": conv.groups, "in_channels": conv.in_channels, "out_channels": conv.out_channels}
    return {"deploy": False, **numbers, **({"rbr_identity": None} if m.rbr_identity is None else {})}


def _implicit(m: ImplicitA | ImplicitM) -> dict[str, Any]:
    return {"channel": m.implicit.shape[1], "mean": 1.0 if isinstance(m, ImplicitM) else 0.0, "std": 0.02}


def _detect(m: Detect) -> dict[str, Any]:
    numbers = {"nc": m.num_classes, "no": m.columns, "nl": m.num_levels, "na": m.num_anchors}
    return {**numbers, "grid": [torch.zeros(1)] * m.num_levels, "stride": _strides(m), "inplace": True}


class _Forward:
    """What stands for a class's ``forward`` in a pickle: ``Segment`` of YOLOv5 holds that of the class Detect."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (_stand_in(self.kind), "forward")


def _segment(m: Segment) -> dict[str, Any]:
    return {**_detect(m), "nm": m.num_masks, "npr": m.proto_width, "detect": _Forward("models.yolo.Detect")}


def _pose_object(m: PoseObject) -> dict[str, Any]:
    return {**_detect(m), "num_coords": m.num_coords}


def _keypoint(m: Keypoint) -> dict[str, Any]:
    numbers = {"no_det": 5 + m.num_classes, "no_kpt": 3 * m.num_keypoints, "nkpt": m.num_keypoints}
    depthwise = isinstance(m.m_kpt[0], nn.Sequential)
    return {**_detect(m), **numbers, "dw_conv_kpt": depthwise, "flip_test": False}


ORIGINALS: dict[type[nn.Module], Original] = {
    Conv: Original("models.common.Conv"),
    RepConv: Original("models.common.RepConv", _repconv),
    DownC: Original("models.common.DownC"),
    SPPCSPC: Original("models.common.SPPCSPC"),
    SPPF: Original("models.common.SPPF"),
    SPPFCSPC: Original("models.common.SPPFCSPC"),
    Bottleneck: Original("models.common.Bottleneck", lambda m: {"add": m.add}),
    C3: Original("models.common.C3"),
    BottleneckCSP: Original("models.common.BottleneckCSP"),
    C3Ghost: Original("models.common.C3Ghost"),
    GhostConv: Original("models.common.GhostConv"),
    GhostBottleneck: Original("models.common.GhostBottleneck"),
    DWConv: Original("models.common.Conv"),  # a function of that name made it, until 6.2
    Focus: Original("models.common.Focus"),
    ConvFocus: Original("models.common.ConvFocus"),
    SPP: Original("models.common.SPP"),
    MP: Original("models.common.MP"),
    SP: Original("models.common.SP"),
    SPF: Original("models.common.SPF", lambda m: {"n": m.m.kernel_size // 2}),
    ZeroPad2d: Original("torch.nn.modules.padding.ZeroPad2d", lambda m: {"padding": m.padding, "value": m.value}),
    ReOrg: Original("models.common.ReOrg"),
    Concat: Original("models.common.Concat", lambda m: {"d": m.dimension}),
    Shortcut: Original("models.common.Shortcut", lambda m: {"d": 1}),
    Add: Original("models.common.ADD", lambda m: {"a": m.alpha}),
    ImplicitA: Original("models.common.ImplicitA", _implicit),
    ImplicitM: Original("models.common.ImplicitM", _implicit),
    lite.StemBlock: Original("models.common.StemBlock"),
    lite.ShuffleBlock: Original("models.common.Shuffle_Block", lambda m: {"stride": m.stride}),
    lite.DWConvblock: Original("models.common.DWConvblock", lambda m: {"p": m.conv1.padding[0]}),
    lite.ConvBnReluMaxpool: Original("models.common.conv_bn_relu_maxpool"),
    Detect: Original("models.yolo.Detect", _detect),
    IDetect: Original("models.yolo.IDetect", _detect),
    IAuxDetect: Original("models.yolo.IAuxDetect", _detect),
    IKeypoint: Original("models.yolo.IKeypoint", _keypoint),
    Keypoint: Original("models.yolo.Detect", _keypoint),
    PoseObject: Original("models.yolo.Detect", _pose_object),
    Segment: Original("models.yolo.Segment", _segment),
    Proto: Original("models.common.Proto"),
    Classify: Original("models.common.Classify"),
    FoldingSequential: Original("torch.nn.modules.container.Sequential"),
}
"""Our layers -> the original's; torch's own modules stay themselves. A model with a layer that has none is written as a
state dict."""

_EARLY = frozenset({"Focus", "ConvFocus", "BottleneckCSP"})
"""Layers of the projects that keep the anchors in pixels too: YOLOv5 before 6.0, YOLO-Pose and KaPao."""


def has_original_format(module: nn.Module) -> bool:
    """Whether ``module`` is a graph of layers that all have an original."""
    if not isinstance(module, LayerGraph) or (module.config is None and not isinstance(module.model[-1], Classify)):
        return False
    return all(type(m) in ORIGINALS or _of_torch(m) for m in module.model.modules())


def original_checkpoint(graph: LayerGraph, names: Sequence[str], **beside: Any) -> bytes:
    """A checkpoint file in the original's format; the same weights and torch version give the same bytes.

    Args:
        graph: one for which :func:`has_original_format` holds.
        names: the class names.
        beside: further entries of the file, plain values.
    """
    config = graph.config
    layers: list[StandIn] = []
    for i, layer in enumerate(graph.model):
        record = record_of(layer)
        kind = type(record)
        parameters = sum(p.numel() for p in layer.parameters())
        kinds = _kinds(config) if config else set()
        if type(layer) in (Detect, Segment) and kinds & {"C3", "C3Ghost"} and not kinds & _EARLY:
            _keep_cells(record, cast(Detect, layer).num_levels)
        origin = config.rows[i][0] if config else -1
        record.__dict__.update(i=i, f=origin, type=f"{kind.__module__}.{kind.__qualname__}", np=parameters)
        layers.append(record)
    sequential = module_record(
        "torch.nn.modules.container.Sequential", modules={str(i): m for i, m in enumerate(layers)}
    )
    root, attributes = _about_detector(graph, config, names) if config else _about_classifier(names)
    model = module_record(root, modules={"model": sequential}, attributes=attributes)
    content = {"model": model, "optimizer": None, "training_results": None, "epoch": -1, **beside}
    return pickled(content)


def _about_classifier(names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The class of a classifier, which has no description, and what it holds; its strides are those of the detector."""
    named, strides = dict(enumerate(names)), torch.tensor([8.0, 16.0, 32.0])
    return CLASSIFIER, {"stride": strides, "save": [], "nc": len(named), "names": named}


def _about_detector(graph: LayerGraph, config: GraphConfig, names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The class of a detector, and what it holds."""
    root = "models.yolo.SegmentationModel" if isinstance(graph.head, Segment) else "models.yolo.Model"
    return root, {
        "yaml": _description(config),
        "save": saved_rows(config.rows),
        "names": list(names),
        "inplace": True,
        "stride": _strides(graph.head),
        "nc": config.num_classes,
        **({} if _kinds(config) & {*LAYERS, "nn.MaxPool2d"} else {"traced": False}),  # of YOLOv7 alone
        **({"num_coords": config.num_coords} if config.num_coords else {}),
    }


def pickled(content: dict[str, Any]) -> bytes:
    """A torch file whose records are pickled under the names of the original's classes."""
    data = BytesIO()  # torch reports a full disk as a RuntimeError about its own archive, Python as what it is
    torch.save(content, data, pickle_module=_PICKLE)
    return data.getvalue()


class StandIn:
    """Base of the classes that only have the name of an original's."""


@cache
def _stand_in(kind: str) -> type[StandIn]:
    module, _, name = kind.rpartition(".")
    return type(name, (StandIn,), {"__module__": module})


def module_record(
    kind: str,
    *,
    parameters: Mapping[str, Tensor | None] | None = None,
    buffers: Mapping[str, Tensor | None] | None = None,
    modules: Mapping[str, StandIn | None] | None = None,
    attributes: dict[str, Any] | None = None,
) -> StandIn:
    """What torch pickles of a module, by the names that all its versions since 1.7 read."""
    record = _stand_in(kind)()
    record.__dict__ = {
        "training": True,
        "_parameters": OrderedDict(parameters or {}),
        "_buffers": OrderedDict(buffers or {}),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_is_full_backward_hook": None,
        "_forward_hooks": OrderedDict(),
        "_forward_pre_hooks": OrderedDict(),
        "_state_dict_hooks": OrderedDict(),
        "_load_state_dict_pre_hooks": OrderedDict(),
        "_modules": OrderedDict(modules or {}),
        **(attributes or {}),
    }
    return record


def record_of(module: nn.Module, originals: Mapping[type[nn.Module], Original] = ORIGINALS) -> StandIn:
    """A module of ours, or of torch, as the original would have it; ``originals``: as :data:`ORIGINALS`."""
    original = originals.get(type(module))
    if original is None:
        known = vars(nn.Module())
        own = {name: value for name, value in vars(module).items() if name not in known}
        original = Original(f"{type(module).__module__}.{type(module).__qualname__}", lambda _: own)
    parameters = {
        name: None if p is None else nn.Parameter(p.detach().half()) for name, p in module._parameters.items()
    }
    buffers = {name: b.half() if b is not None and b.is_floating_point() else b for name, b in module._buffers.items()}
    children: dict[str, nn.Module | None] = {**dict(module.named_children()), **original.modules(module)}
    modules = {name: None if child is None else record_of(child, originals) for name, child in children.items()}
    if isinstance(module, Focus) and not module.rows_first:  # which layer does it is all that tells the order
        modules = {"contract": module_record("models.common.Contract", attributes={"gain": 2}), **modules}
    if isinstance(module, Classify):
        pool = module_record("torch.nn.modules.pooling.AdaptiveAvgPool2d", attributes={"output_size": 1})
        drop = module_record("torch.nn.modules.dropout.Dropout", attributes={"p": 0.0, "inplace": True})
        modules = {"conv": modules["conv"], "pool": pool, "drop": drop, "linear": modules["linear"]}
    attributes = original.attributes(module)
    return module_record(original.kind, parameters=parameters, buffers=buffers, modules=modules, attributes=attributes)


def _keep_cells(head: StandIn, levels: int) -> None:
    """YOLOv5 6.0 and later keep the anchors in cells only, and make those in pixels when they run."""
    del head.__dict__["_buffers"]["anchor_grid"]
    head.__dict__["anchor_grid"] = [torch.zeros(1)] * levels


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.")


def _strides(head: Detect) -> Tensor:
    return torch.tensor(head.stride, dtype=torch.float32)


def _description(config: GraphConfig) -> dict[str, Any]:
    """The ``yaml`` of such a model. Where its backbone ends makes no difference; here it is all but the head."""
    keypoints = (
        {"nkpt": config.num_keypoints, "dw_conv_kpt": config.depthwise_keypoints} if config.num_keypoints else {}
    )
    rows = [[origin, repeats, kind, list(arguments)] for origin, repeats, kind, arguments in config.rows]
    return {
        "nc": config.num_classes + config.num_coords,
        "depth_multiple": config.depth_multiple,
        "width_multiple": config.width_multiple,
        **keypoints,
        "anchors": [list(level) for level in config.anchors],
        "backbone": rows[:-1],
        "head": rows[-1:],
        "ch": config.channels,
        **_activations(config),
    }


def _activations(config: GraphConfig) -> dict[str, str]:
    """What a description says of them; of those before 4.0 none does, and the modules have them anyway."""
    if config.silu_layers == NOT_GIVEN_ACT:
        return {"act": config.activation.removeprefix("nn.").removesuffix("()")}
    return {"activation": config.activation} if config.activation and "BottleneckCSP" not in _kinds(config) else {}


def _kinds(config: GraphConfig) -> set[str]:
    return {row[2] for row in config.rows}


def saved_rows(rows: Sequence[Row]) -> list[int]:
    """The layers whose output a later one asks for by number."""
    asked = [(i, s) for i, row in enumerate(rows) for s in ([row[0]] if isinstance(row[0], int) else row[0])]
    return sorted(s % i for i, s in asked if s != -1)


class _Pickler(pickle._Pickler):  # stable, but in no type stub: hence the ignored types below
    """Python's own pickler, which writes the name of a stand-in as if it were the original's class."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if isinstance(obj, type) and issubclass(obj, StandIn):
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())  # type: ignore[attr-defined]
            self.memoize(obj)  # type: ignore[attr-defined]
        else:
            super().save_global(obj, name)  # type: ignore[misc]


_PICKLE = types.ModuleType("deploykit_pickle")
_PICKLE.Pickler = _Pickler  # type: ignore[attr-defined]  # a module made here has no declared names
