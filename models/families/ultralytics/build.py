"""A network from a description of the ultralytics package: each row to the layer that it names.

Facts from the published model descriptions (AGPL-3.0); the code is ours. Where a file's tensors are given, widths,
repeats and the kinds of blocks within a layer are theirs, because releases read one description in different ways.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from deploykit.errors import CheckpointError, UnknownLayerError
from deploykit.models.families.ultralytics.blocks import attention, c2f, cib, elan
from deploykit.models.families.ultralytics.description import ADVICE, DEPTHWISE_CLASSES, HEADS, Description
from deploykit.models.families.ultralytics.heads.classify import Classify
from deploykit.models.families.ultralytics.heads.detect import FreeDetect, HeadForm
from deploykit.models.families.ultralytics.heads.oriented import Oriented, Oriented26
from deploykit.models.families.ultralytics.heads.pose import FreePose, Pose26
from deploykit.models.families.ultralytics.heads.segment import Segment, Segment26
from deploykit.models.families.ultralytics.saved import Saved
from deploykit.models.layers.conv import Concat, Conv, DWConv
from deploykit.models.layers.focus import Focus
from deploykit.models.layers.pool import ZeroPad2d
from deploykit.models.yolo_graph.description import (
    MAX_CHANNELS,
    MAX_ENTRIES,
    MAX_LAYERS,
    REFUSALS,
    literal,
    read_row,
)
from deploykit.models.yolo_graph.layer_graph import MAX_MODULES, LayerGraph, activate, strides_of

__all__ = ["KINDS", "build_graph", "repeats_of", "saved_count", "scaled_width"]

CLASSIFIER_EPS = 1e-5
"""Of the batch norms of classifiers, torch's own; the package's other networks have 1e-3."""

LARGE = "mlx"
"""Sizes of which C3k2 always holds C3k blocks."""

WIDE_RESIDUAL = "lx"
"""Sizes of which A2C2f adds its input and has narrower perceptrons."""

REPEATED: dict[str, type[nn.Module]] = {
    "Conv": Conv, "DWConv": DWConv, "Focus": Focus, "Bottleneck": c2f.Bottleneck, "SPP": c2f.SPP, "SPPF": c2f.SPPF,
    "PSA": attention.PSA, "SCDown": cib.SCDown, "ELAN1": elan.ELAN1, "RepNCSPELAN4": elan.RepNCSPELAN4,
    "ADown": elan.ADown, "AConv": elan.AConv, "SPPELAN": elan.SPPELAN,
}  # fmt: skip
"""Layers whose first argument is the width, which is scaled; they are repeated one after the other."""

STACKS: dict[str, type[nn.Module]] = {
    "C1": c2f.C1, "C2": c2f.C2, "C2f": c2f.C2f, "C3": c2f.C3, "C3x": c2f.C3x, "C3k2": c2f.C3k2,
    "C2PSA": attention.C2PSA, "C2fPSA": attention.C2fPSA, "A2C2f": attention.A2C2f, "C2fCIB": cib.C2fCIB,
}  # fmt: skip
"""The same, and a row's repeats are how many blocks the layer holds."""

INNER = {
    "RepNCSPELAN4": ("cv1.conv", "cv2.1.conv"), "ELAN1": ("cv1.conv", "cv2.conv"), "SPPELAN": ("cv1.conv",),
}  # fmt: skip
"""Layers with widths after the first, which are not scaled, and the convolutions within that give so many channels."""

WITHIN = {"RepNCSPELAN4": 3, "SPPF": 2}
"""Layers of which an argument, at this place, is how many blocks or pools they hold."""

SAME_CHANNELS: dict[str, type[nn.Module]] = {
    "nn.Upsample": nn.Upsample,
    "nn.MaxPool2d": nn.MaxPool2d,
    "nn.ZeroPad2d": ZeroPad2d,
    "nn.Identity": nn.Identity,
    "Silence": nn.Identity,
}
OTHERS = ("Concat", "CBLinear", "CBFuse", "nn.ConvTranspose2d")
KINDS = tuple(sorted((*REPEATED, *STACKS, *SAME_CHANNELS, *OTHERS, *HEADS)))


def build_graph(description: Description, tensors: Mapping[str, Tensor] | None = None) -> LayerGraph:
    """Build a network; weights are torch's defaults.

    Args:
        description: its layers.
        tensors: those of a file, ``model.<i>.<...>``; None: the description alone says what is built.

    Raises:
        UnknownLayerError: a row names a layer that deploykit does not have.
        CheckpointError: a row that does not fit together.
    """
    saved = None if tensors is None else Saved(tensors)
    for i, row in enumerate(description.rows):
        kind = read_row(i, row)[2]
        if kind not in KINDS:
            raise _unknown(i, kind)
    if description.head not in HEADS:
        raise CheckpointError(
            f"a model's description ends with a head ({', '.join(HEADS)}), "
            f"this one with {reprlib.repr(description.rows[-1])}"
        )
    layers: list[nn.Module] = []
    sources: list[tuple[int, ...]] = []
    channels: list[Any] = [description.channels]  # channels[i + 1] is what layer i gives
    room, modules = MAX_LAYERS, MAX_MODULES
    for i, row in enumerate(description.rows):
        used, repeats, kind, arguments = read_row(i, row)
        try:
            part = _Part(description, saved, i, kind, repeats_of(repeats, description))
            room -= part.count
            if room < 0:
                raise ValueError(f"with its repeats the model has more than {MAX_LAYERS} layers")
            if kind in HEADS and i < len(description.rows) - 1:
                raise ValueError("a head is the last layer")
            layer, out = part.layer([_literal(a, description) for a in arguments], [channels[s + 1] for s in used])
            modules -= sum(1 for _ in layer.modules())
            if modules < 0:
                raise ValueError(f"with what is inside of its layers the model has more than {MAX_MODULES} modules")
        except REFUSALS as e:
            first_line = str(e).partition("\n")[0]
            raise CheckpointError(
                f"layer {i} of the model's description, {reprlib.repr(row)}, cannot be built: {first_line}"
            ) from e
        if description.activation:
            activate(layer, description.activation)
        layers.append(layer)
        sources.append(used)
        channels.append(out)
    graph = LayerGraph(layers, sources).eval()
    head = layers[-1]
    if isinstance(head, FreeDetect):
        head.set_stride(description.strides or strides_of(graph, description.channels, description.rows))
    else:
        if saved is not None:  # for its checks alone: of the published ones nothing is to be checked
            strides_of(graph, description.channels, description.rows)
        for module in graph.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = CLASSIFIER_EPS
    return graph


def repeats_of(repeats: int, description: Description) -> int:
    """How often a row's layer is repeated.

    Raises:
        ValueError: less than once.
    """
    if repeats < 1:
        raise ValueError(f"it is repeated {repeats} times, expected at least 1")
    return max(round(repeats * description.depth), 1) if repeats > 1 else 1


def _literal(value: Any, description: Description) -> Any:
    return literal(value, {"nc": description.num_classes, "kpt_shape": description.kpt_shape})


def _unknown(i: int, kind: str) -> UnknownLayerError:
    return UnknownLayerError(
        f"layer {i} of the model's description is {reprlib.repr(kind)}, which deploykit does not have for models of "
        f"the ultralytics package: {ADVICE}; it has {', '.join(KINDS)}"
    )


class _Part:
    """One row on its way to a layer."""

    def __init__(self, description: Description, saved: Saved | None, i: int, kind: str, count: int) -> None:
        self.description, self.saved, self.kind = description, saved, kind
        self.path = f"model.{i}"
        self.count = (saved_count(saved, kind, self.path) if saved else 0) or count

    def layer(self, args: list[Any], inputs: list[Any]) -> tuple[nn.Module, Any]:
        """The layer, and how many channels it gives (of several maps, a list)."""
        kind = self.kind
        if any(isinstance(given, list) for given in (inputs[-1:] if kind == "CBFuse" else inputs)):
            raise ValueError("it is fed by the parts of a CBLinear, which only CBFuse takes, and not as its last")
        within = args[WITHIN[kind]] if len(args) > WITHIN.get(kind, len(args)) else 1
        if not 1 <= within <= MAX_ENTRIES:
            raise ValueError(f"it holds {reprlib.repr(within)} blocks, expected 1 to {MAX_ENTRIES}")
        if kind in SAME_CHANNELS:
            return _in_a_row([SAME_CHANNELS[kind](*args) for _ in range(self.count)]), inputs[0]
        if kind == "Concat":
            return Concat(*args), sum(inputs)
        if kind == "CBLinear":
            widths = [_checked(int(width)) for width in args[0]]
            return elan.CBLinear(inputs[0], widths), widths
        if kind == "CBFuse":
            return elan.CBFuse(args[0]), inputs[-1]
        if kind in HEADS:
            return self._head(args, inputs), 0
        out = self._outputs(args[0])
        if kind == "nn.ConvTranspose2d":
            return nn.ConvTranspose2d(inputs[0], out, *args[1:]), out
        if kind in STACKS:
            return STACKS[kind](inputs[0], out, self.count, *self._stack_arguments(args[1:], out)), out
        rest = _conv_arguments(kind, self._inner(args)[1:])
        if kind == "SPPF" and len(rest) > 1:  # only YOLO26 says more than the kernel, and has no activation there
            rest = [*rest, *[3, False][len(rest) - 1 :], nn.Identity()]
        made = (REPEATED[kind](inputs[0] if k == 0 else out, out, *rest) for k in range(self.count))
        return _in_a_row(list(made)), out

    def _outputs(self, width: Any) -> int:
        """The channels of a row of this width: the file's, or those that the description leads to."""
        path = f"{self.path}.0" if self.saved and self.kind in REPEATED and self.count > 1 else self.path
        out = self.saved.outputs(self.kind, path) if self.saved else 0
        return _checked(out or _scaled(width, self.description))

    def _inner(self, args: list[Any]) -> list[Any]:
        """The arguments with the widths within, and RepNCSPELAN4's number of blocks, of the tensors."""
        if self.saved is None or self.count > 1 or self.kind not in INNER:
            return args
        widths = [self.saved.shape(f"{self.path}.{conv}.weight") for conv in INNER[self.kind]]
        found = [shape[0] if shape else given for shape, given in zip(widths, args[1:], strict=False)]
        blocks = self.saved.count(f"{self.path}.cv2.0.m") if self.kind == "RepNCSPELAN4" else 0
        return [args[0], *found, *([blocks] if blocks else args[1 + len(found) :])]

    def _stack_arguments(self, args: list[Any], out: int) -> list[Any]:
        """What a stack is given after its width and repeats, with what depends on the size of the network."""
        size, saved, first = self.description.size, self.saved, f"{self.path}.m.0"
        if self.kind == "C3k2":
            args = [*args, *[False, 0.5, False][len(args) :]]
            args[0] = bool(args[0]) or (bool(size) and size in LARGE)
            if saved is not None:
                args[2] = saved.has(f"{first}.1.attn")
                args[0] = saved.has(f"{first}.cv3") or (args[2] and bool(args[0]))
        elif self.kind == "A2C2f" and len(args) < 3:
            args = [*args, *[True, 1][len(args) :]]
            wide = bool(size) and size in WIDE_RESIDUAL
            hidden = saved.shape(f"{first}.0.mlp.0.conv.weight") if saved else ()
            if saved is not None:
                wide = bool(saved.shape(f"{self.path}.gamma"))
            ratio = hidden[0] / hidden[1] if len(hidden) > 1 else 1.2 if wide else 2.0
            args = [*args, wide, ratio]
        return args

    def _head(self, args: list[Any], inputs: list[int]) -> nn.Module:
        d, saved, kind, path = self.description, self.saved, self.kind, self.path
        if kind == "Classify":
            shape = saved.shape(f"{path}.linear.weight") if saved else ()
            return Classify(shape[0] if shape else int(args[0]), inputs[0])
        kinds = {str(row[2]) for row in d.rows}
        depthwise, dual, reg_max = bool(kinds & DEPTHWISE_CLASSES), d.dual or kind == "v10Detect", d.reg_max
        classes, class_width, branch = int(args[0]), 0, ""
        if saved is not None:
            dual = saved.has(f"{path}.one2one_cv2")
            branch = "one2one_" if dual and not saved.has(f"{path}.cv2") else ""
            depthwise = saved.has(f"{path}.{branch}cv3.0.0.0")
            classes = (saved.shape(f"{path}.{branch}cv3.0.2.weight") or (classes,))[0]
            reg_max = (saved.shape(f"{path}.{branch}cv2.0.2.weight") or (4 * reg_max,))[0] // 4
            last = saved.shape(f"{path}.{branch}cv3.0.2.weight")
            class_width = last[1] if len(last) > 1 else 0
        options: HeadForm = {"reg_max": reg_max, "depthwise": depthwise, "dual": dual}
        options["class_width"] = class_width or None
        head = self._head_of(kind, args, inputs, classes, options)
        return head.alone() if branch else head

    def _head_of(self, kind: str, args: list[Any], inputs: list[int], classes: int, options: HeadForm) -> FreeDetect:
        d, saved, path = self.description, self.saved, self.path
        if kind in ("Detect", "v10Detect"):
            return FreeDetect(classes, inputs, **options)
        if kind in ("Segment", "Segment26"):
            masks, wide = ([*args[1:], *[32, 256][len(args) - 1 :]])[:2]
            inner = saved.shape(f"{path}.proto.cv1.conv.weight") if saved else ()
            hidden = inner[0] if inner else _scaled(wide, d)
            return (Segment if kind == "Segment" else Segment26)(classes, inputs, masks, hidden, **options)
        if kind in ("Pose", "Pose26"):
            points, dims = args[1] if len(args) > 1 else d.kpt_shape
            return (FreePose if kind == "Pose" else Pose26)(classes, inputs, (int(points), int(dims)), **options)
        return (Oriented if kind == "OBB" else Oriented26)(classes, inputs, **options)


def _conv_arguments(kind: str, args: list[Any]) -> list[Any]:
    """A convolution's arguments after its channels, in the order of our class: kernel, stride, padding, groups, ..."""
    order = {"Conv": (4, 5), "DWConv": (2, 3)}.get(kind)
    if order is None:
        return args
    dilation, act = order
    ours = args[:dilation]
    if len(args) > act:
        ours += [{True: None, False: nn.Identity()}.get(args[act], args[act]) if type(args[act]) is bool else args[act]]
    elif len(args) > dilation:
        ours += [None]
    return [*ours, args[dilation]] if len(args) > dilation else ours


def saved_count(saved: Saved, kind: str, path: str) -> int:
    """How many blocks a layer holds, or how often it is repeated, by its tensors; 0: they do not tell."""
    if not saved.has(path) or kind not in (*STACKS, *REPEATED):
        return 0
    return max(saved.count(f"{path}.m" if kind in STACKS else path), 1)


def scaled_width(kind: str, arguments: Sequence[Any], description: Description) -> int:
    """The channels that a row's layer gives by its description; 0: those of what feeds it."""
    wide = kind in REPEATED or kind in STACKS or kind == "nn.ConvTranspose2d"
    return _scaled(arguments[0], description) if wide and arguments else 0


def _scaled(width: Any, description: Description) -> int:
    return math.ceil(min(cast(int, width), description.max_channels) * description.width / 8) * 8


def _checked(channels: int) -> int:
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"it gives {reprlib.repr(channels)} channels, expected 1 to {MAX_CHANNELS}")
    return channels


def _in_a_row(layers: list[nn.Module]) -> nn.Module:
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
