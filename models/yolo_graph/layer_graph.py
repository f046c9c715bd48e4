"""A network from rows ``[from, repeats, layer, arguments]``: how the YOLOv5 and YOLOv7 projects describe a model.

Our own variants are written as such rows, and a checkpoint that carries its own description is built from it, so that
custom-trained models load too. Nothing in a row is evaluated: names and numbers are looked up.
"""

from __future__ import annotations

import copy
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import Detect, IKeypoint, Keypoint
from deploykit.models.layers.conv import Add, Concat, Conv, ReOrg, Shortcut
from deploykit.models.layers.pose_object import PoseObject
from deploykit.models.yolo_graph.layer_table import (
    CONVOLUTIONS,
    HEADS,
    KNOWN,
    SAME_CHANNELS,
    STACKS,
    activation,
    unknown_layer,
)

Row = Sequence[Any]
"""``[from, repeats, layer, arguments]``; ``from`` is an index or a list of them, -1 the row before."""

# A hostile description must not keep us busy; the largest real one has 266 rows, 8 sources and 2048 channels.
MAX_ROWS, MAX_LAYERS, MAX_ENTRIES, MAX_CHANNELS = 1000, 1000, 32, 65_536
MAX_MODULES = 4000  # with all that is inside of them; the largest real one has 1063
MAX_FEATURE = 2**27  # values that a layer gives for an image of 256 px; the largest real one gives 2**22

_REFUSALS = (ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What Python and torch raise for numbers and shapes that make no layer."""


NOT_GIVEN_ACT = ("SPP", "Detect")
"""The layers of edgeai-yolov5 that keep SiLU whatever ``act`` says: its code does not hand it to them."""


@dataclass(frozen=True)
class GraphConfig:
    """What a description says beside its rows. ``anchors``: a flat list ``w, h, ...`` in pixels per level.

    ``activation`` is that of every convolution whose row does not name one, but for those in ``silu_layers``; empty:
    SiLU. ``num_coords``, beside the classes, make the head KaPao's.

    Raises:
        CheckpointError: a number that no model has.
    """

    rows: tuple[Row, ...]
    num_classes: int
    anchors: tuple[tuple[float, ...], ...]
    num_keypoints: int = 0
    depthwise_keypoints: bool = False
    num_coords: int = 0
    depth_multiple: float = 1.0
    width_multiple: float = 1.0
    channels: int = 3
    activation: str = ""
    silu_layers: tuple[str, ...] = ()
    strides: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not 1 <= len(self.rows) <= MAX_ROWS:
            raise CheckpointError(f"a model's description has 1 to {MAX_ROWS} layers, this one has {len(self.rows)}")
        for name, least in (("num_classes", 1), ("num_keypoints", 0), ("num_coords", 0), ("channels", 1)):
            value = getattr(self, name)
            if not least <= value <= MAX_CHANNELS:
                raise CheckpointError(
                    f"a model's {name} is {least} to {MAX_CHANNELS}, its description says {reprlib.repr(value)}"
                )
        for name in ("depth_multiple", "width_multiple"):
            value = getattr(self, name)
            if not 0.0 < value <= MAX_ENTRIES:  # a NaN must fail
                raise CheckpointError(
                    f"a model's {name} is over 0 and up to {MAX_ENTRIES}, its description says {value}"
                )
        sizes = {len(level) for level in self.anchors}
        if len(sizes) != 1 or not 1 <= len(self.anchors) <= MAX_ENTRIES or max(sizes) not in range(2, MAX_ENTRIES, 2):
            raise CheckpointError(
                "a model's anchors are a list w, h, w, h, ... per level, all of one length; "
                f"its description says {reprlib.repr(self.anchors)}"
            )

    @staticmethod
    def from_yaml(yaml: Mapping[str, Any]) -> GraphConfig:
        """Read the ``yaml`` dictionary that a YOLOv5/v7 checkpoint carries.

        Raises:
            CheckpointError: a part is missing, of another type or out of range.
        """
        try:
            rows = (*yaml["backbone"], *yaml["head"])
            _check_known(rows)
            return GraphConfig(
                rows=rows,
                num_classes=int(yaml["nc"]),
                anchors=_anchors(yaml["anchors"], rows),
                num_keypoints=int(yaml.get("nkpt") or 0),
                depthwise_keypoints=bool(yaml.get("dw_conv_kpt", False)),
                depth_multiple=float(yaml.get("depth_multiple", 1.0)),
                width_multiple=float(yaml.get("width_multiple", 1.0)),
                channels=int(yaml.get("ch", 3)),
                activation=_activation_name(yaml),
                silu_layers=NOT_GIVEN_ACT if yaml.get("act") and not yaml.get("activation") else (),
            )
        except KeyError as e:
            raise CheckpointError(
                f"the checkpoint's model description has no {e.args[0]!r}: only those of the YOLOv5 and YOLOv7 "
                "projects are read (backbone, head, nc, anchors)"
            ) from e
        except (ArithmeticError, TypeError, ValueError) as e:
            raise CheckpointError(f"the checkpoint's model description cannot be read: {e}") from e


def _anchors(value: Any, rows: Sequence[Row]) -> tuple[tuple[float, ...], ...]:
    """In pixels, per level. A mere number of them says that training found them and that they are in the weights."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value < MAX_ENTRIES // 2:
            raise ValueError(f"{reprlib.repr(value)} anchors per level, expected 1 to {MAX_ENTRIES // 2 - 1}")
        sources, *_ = read_row(len(rows) - 1, rows[-1])
        return (tuple(float(i) for i in range(2 * value)),) * len(sources)
    return tuple(tuple(float(a) for a in level) for level in value)


def _activation_name(yaml: Mapping[str, Any]) -> str:
    """YOLOv5 7.0 writes ``activation: nn.LeakyReLU(0.1)``, edgeai-yolov5 ``act: ReLU``."""
    named = yaml.get("activation") or (f"nn.{yaml['act']}()" if yaml.get("act") else "")
    if not isinstance(named, str):
        raise TypeError(f"its activation is {reprlib.repr(named)}, expected a name")
    if named:
        activation(named)
    return named


def _check_known(rows: Sequence[Row]) -> None:
    """Before anything else of a description is looked at, because this tells its reader most."""
    for i, row in enumerate(rows):
        kind = str(row[2]) if isinstance(row, (list, tuple)) and len(row) > 2 else ""
        if kind and kind not in KNOWN:
            raise unknown_layer(i, kind)


class LayerGraph(nn.Module):
    """Layers in a row, each fed by earlier ones; ``(B, channels, H, W)`` to what the last layer gives.

    State-dict keys are the original's, ``model.<i>.<...>``. ``sources[i]`` are the layers that feed layer i; -1 is
    the image. ``config`` is what it was built from; a folded graph has none.
    """

    def __init__(
        self, layers: Sequence[nn.Module], sources: Sequence[tuple[int, ...]], config: GraphConfig | None = None
    ) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)
        self.sources = tuple(sources)
        self.config = config
        # A feature map is dropped after its last use: this is what keeps the 960 px models small in memory.
        self.last_use = {source: i for i, used in enumerate(self.sources) for source in used}

    @property
    def head(self) -> Detect:
        """The last layer."""
        return cast(Detect, self.model[-1])

    def forward(self, images: Tensor) -> Tensor:
        outputs = {-1: images}
        for i, (layer, used) in enumerate(zip(self.model, self.sources, strict=True)):
            outputs[i] = layer(*(outputs[s] for s in used))
            for s in set(used):
                if self.last_use[s] == i:
                    del outputs[s]
        return outputs[len(self.sources) - 1]

    def fuse(self, path: str = "") -> LayerGraph:
        """The deploy graph: every layer folded, and the layers that then feed nothing (auxiliary heads) dropped."""
        layers = [fuse_model(layer, f"{path}model.{i}") for i, layer in enumerate(self.model)]
        head = cast(Detect, layers[-1])
        sources = [*self.sources[:-1], self.sources[-1][: head.num_levels]]
        alive = _reachable(sources)
        index = {-1: -1, **{old: new for new, old in enumerate(alive)}}
        return LayerGraph([layers[i] for i in alive], [tuple(index[s] for s in sources[i]) for i in alive])


def _reachable(sources: Sequence[tuple[int, ...]]) -> list[int]:
    """The layers that the last one depends on, in order."""
    alive = {len(sources) - 1}
    for i in reversed(range(len(sources))):
        if i in alive:
            alive.update(s for s in sources[i] if s >= 0)
    return sorted(alive)


def build_graph(config: GraphConfig) -> LayerGraph:
    """Build a network from its rows; weights are torch's defaults.

    Raises:
        UnknownLayerError: a row names a layer that deploykit does not have.
        CheckpointError: a row that does not fit together.
    """
    layers: list[nn.Module] = []
    sources: list[tuple[int, ...]] = []
    channels = [config.channels]  # channels[i + 1] is what layer i gives, channels[0] is the image's
    room, modules = MAX_LAYERS, MAX_MODULES
    for i, row in enumerate(config.rows):
        used, repeats, kind, arguments = read_row(i, row)
        try:
            count = _count(repeats, config)
            room -= count
            if room < 0:
                raise ValueError(f"with its repeats the model has more than {MAX_LAYERS} layers")
            layer, out = _layer(kind, arguments, [channels[s + 1] for s in used], count, config, i)
            modules -= sum(1 for _ in layer.modules())
            if modules < 0:
                raise ValueError(f"with what is inside of its layers the model has more than {MAX_MODULES} modules")
        except _REFUSALS as e:
            raise _misfit(i, row, e) from e
        if config.activation and kind not in config.silu_layers:
            _activate(layer, config.activation)
        layers.append(layer)
        sources.append(used)
        channels.append(out)
    if not isinstance(layers[-1], Detect):
        raise CheckpointError(
            f"a model's description ends with a head ({', '.join(HEADS)}), "
            f"this one with {reprlib.repr(config.rows[-1])}"
        )
    graph = LayerGraph(layers, sources, config).eval()
    graph.head.set_stride(config.strides or _strides(graph, config))
    return graph


def read_row(i: int, row: Row) -> tuple[tuple[int, ...], int, str, list[Any]]:
    """Row ``i``'s sources as absolute indices (-1 is the image), its repeats, layer and arguments.

    Raises:
        CheckpointError: it is not a row, or is fed by a layer that does not come before it.
    """
    try:
        origin, repeats, kind, arguments = row
        used = tuple(s if s >= 0 else i + s for s in ([origin] if isinstance(origin, int) else origin))
        if not used or len(used) > MAX_ENTRIES or not all(isinstance(s, int) and -1 <= s < i for s in used):
            raise ValueError(f"it is fed by {reprlib.repr(origin)}, which is not an earlier layer")
        if not isinstance(kind, str) or not isinstance(arguments, (list, tuple)) or len(arguments) > MAX_ENTRIES:
            raise ValueError(f"expected [from, repeats, layer, arguments] with up to {MAX_ENTRIES} arguments")
        return used, int(repeats), kind, list(arguments)
    except _REFUSALS as e:
        raise _misfit(i, row, e) from e


def _activate(layer: nn.Module, text: str) -> None:
    """Give the convolutions that have no activation of their own the description's."""
    for module in layer.modules():
        if isinstance(module, Conv) and type(module.act) is nn.SiLU:
            module.act = activation(text)


def _misfit(i: int, row: Row, reason: Exception) -> CheckpointError:
    first_line = str(reason).partition("\n")[0]
    return CheckpointError(
        f"layer {i} of the model's description, {reprlib.repr(row)}, cannot be built: {first_line}; "
        "the description is damaged, or not one of the YOLOv5 and YOLOv7 projects"
    )


def _count(repeats: int, config: GraphConfig) -> int:
    if repeats < 1:
        raise ValueError(f"it is repeated {repeats} times, expected at least 1")
    return max(round(repeats * config.depth_multiple), 1) if repeats > 1 else 1


def _layer(
    kind: str, arguments: list[Any], inputs: list[int], count: int, config: GraphConfig, i: int
) -> tuple[nn.Module, int]:
    """One row's module and how many channels it gives."""
    args = [_literal(a, config) for a in arguments]
    if kind in CONVOLUTIONS or kind in STACKS:
        out = _divisible(args[0] * config.width_multiple) if args[0] != _outputs(config) else args[0]
        if not 1 <= out <= MAX_CHANNELS:
            raise ValueError(f"it gives {out} channels, expected 1 to {MAX_CHANNELS}")
        text = next((a for a in args if isinstance(a, str)), None)
        if text is not None:
            raise ValueError(f"its argument {text!r} is neither a number nor an activation")
        if kind in STACKS:
            return STACKS[kind](inputs[0], out, count, *args[1:]), out
        return _repeated(CONVOLUTIONS[kind], [inputs[0], out, *args[1:]], count), out
    if kind in SAME_CHANNELS:
        return SAME_CHANNELS[kind](*args), inputs[0]
    if kind in HEADS:
        return _head(kind, inputs, config, keypoints="nkpt" in arguments), 0
    if kind == "Concat":
        return Concat(*args), sum(inputs)
    if kind == "Shortcut":
        return Shortcut(), inputs[0]
    if kind == "ADD":
        return Add(*args), inputs[0]
    if kind == "ReOrg":
        return ReOrg(), inputs[0] * 4
    if kind == "nn.Upsample":
        return nn.Upsample(*args), inputs[0]
    raise unknown_layer(i, kind)


def _head(kind: str, inputs: list[int], config: GraphConfig, *, keypoints: bool) -> Detect:
    expected = len(config.anchors) * (2 if kind == "IAuxDetect" else 1)
    if len(inputs) != expected:
        raise ValueError(
            f"it is fed by {len(inputs)} layers, its {len(config.anchors)} levels of anchors need {expected}"
        )
    if kind == "Detect" and config.num_coords:
        return PoseObject(config.num_classes, config.anchors, inputs, config.num_coords)
    if kind != "IKeypoint" and not (kind == "Detect" and keypoints):  # edgeai-yolov5 calls its keypoint head Detect
        return HEADS[kind](config.num_classes, config.anchors, inputs)
    if not config.num_keypoints:
        raise ValueError("a keypoint head needs nkpt, the number of keypoints")
    head = IKeypoint if kind == "IKeypoint" else Keypoint
    return head(config.num_classes, config.anchors, inputs, config.num_keypoints, config.depthwise_keypoints)


def _repeated(kind: type[nn.Module], args: list[Any], count: int) -> nn.Module:
    return nn.Sequential(*(kind(*args) for _ in range(count))) if count > 1 else kind(*args)


def _outputs(config: GraphConfig) -> int:
    """Upstream leaves a convolution of exactly the head's width unscaled; its anchors count is that of level 0."""
    return len(config.anchors[0]) // 2 * (config.num_classes + config.num_coords + 5)


def _divisible(x: float, by: int = 8) -> int:
    return math.ceil(x / by) * by


def _literal(value: Any, config: GraphConfig) -> Any:
    """What a description's argument means; the only strings are a few names and activations."""
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_ENTRIES or any(isinstance(v, (list, tuple)) for v in value):
            raise ValueError(f"its argument {reprlib.repr(value)} is neither one value nor a short list")
        return [_literal(v, config) for v in value]
    if not isinstance(value, str):
        return value
    named = {"None": None, "True": True, "False": False, "nc": config.num_classes, "nkpt": config.num_keypoints}
    if value in named:
        return named[value]
    return activation(value) if value.startswith("nn.") else value


def _without_norms(module: nn.Module) -> nn.Module:
    """The same shapes without batch norms, which take longest where nothing is computed."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        else:
            _without_norms(child)
    return module


def _strides(graph: LayerGraph, config: GraphConfig) -> list[int]:
    """The width of a cell of each level in pixels of the image, found by running shapes only."""
    side = 256
    outputs = {-1: torch.empty(1, config.channels, side, side, device="meta")}
    last = len(graph.sources) - 1
    with torch.no_grad():
        for i in range(last):
            try:
                twin = _without_norms(copy.deepcopy(graph.model[i]).to("meta"))
                outputs[i] = twin(*(outputs[s] for s in graph.sources[i]))
                if outputs[i].numel() > MAX_FEATURE:
                    raise ValueError(f"it gives {outputs[i].numel():,} values for an image of {side} px")
            except _REFUSALS as e:
                raise _misfit(i, config.rows[i], e) from e
    strides = [side // max(outputs[s].shape[-1], 1) for s in graph.sources[last][: graph.head.num_levels]]
    if min(strides) < 1:
        raise CheckpointError("a level of the model's head is larger than the image: its description is damaged")
    return strides
