"""A network from rows ``[from, repeats, layer, arguments]``: how the YOLOv5 and YOLOv7 projects describe a model.

Our own variants are written as such rows, and a checkpoint that carries its own description is built from it, so that
custom-trained models load too.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.anchor_head import Detect
from deploykit.models.layers.conv import Conv, ReOrg
from deploykit.models.layers.focus import Focus
from deploykit.models.yolo_graph.description import (
    MAX_LAYERS,
    REFUSALS,
    GraphConfig,
    Row,
    misfit,
    read_row,
)
from deploykit.models.yolo_graph.layer_table import HEADS, activation
from deploykit.models.yolo_graph.row_layers import layer_of_row, repeats_of_row
from deploykit.models.yolo_graph.shapes_alone import ShapesAlone, outline

MAX_MODULES = 4000  # with all that is inside of the layers; the largest real model has 1063
MAX_FEATURE = 2**27  # values that a layer gives for an image of 256 px; the largest real one gives 2**22


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

    def forward(self, images: Tensor) -> Any:
        outputs: dict[int, Any] = {-1: images}
        for i, (layer, used) in enumerate(zip(self.model, self.sources, strict=True)):
            outputs[i] = layer(*(outputs[s] for s in used))
            for s in set(used):
                if self.last_use[s] == i:
                    del outputs[s]
        return outputs[len(self.sources) - 1]

    def fuse(self, path: str = "") -> LayerGraph:
        """The deploy graph: every layer folded, and the layers that then feed nothing (auxiliary heads) dropped."""
        modules = _with_focus(list(self.model), self.sources)
        layers = [fuse_model(layer, f"{path}model.{i}") for i, layer in enumerate(modules)]
        levels = getattr(layers[-1], "num_levels", None)  # a classifier's head has no levels
        sources = [*self.sources[:-1], self.sources[-1][:levels]]
        alive = _reachable(sources)
        index = {-1: -1, **{old: new for new, old in enumerate(alive)}}
        return LayerGraph([layers[i] for i in alive], [tuple(index[s] for s in sources[i]) for i in alive])


def _with_focus(layers: Sequence[nn.Module], sources: Sequence[tuple[int, ...]]) -> list[nn.Module]:
    """The layers with a Focus, which folds, where a convolution is all that a space to depth feeds.

    What is left in place of the space to depth does nothing, and keeps the numbers of the others.
    """
    new_layers = list(layers)
    for i, layer in enumerate(layers):
        users = [user for user, used in enumerate(sources) if i in used]
        if type(layer) is ReOrg and len(users) == 1 and type(layers[users[0]]) is Conv:
            new_layers[i], new_layers[users[0]] = nn.Identity(), Focus.of(cast(Conv, layers[users[0]]))
    return new_layers


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
            count = repeats_of_row(repeats, config)
            room -= count
            if room < 0:
                raise ValueError(f"with its repeats the model has more than {MAX_LAYERS} layers")
            layer, out = layer_of_row(kind, arguments, [channels[s + 1] for s in used], count, config, i)
            modules -= sum(1 for _ in layer.modules())
            if modules < 0:
                raise ValueError(f"with what is inside of its layers the model has more than {MAX_MODULES} modules")
        except REFUSALS as e:
            raise misfit(i, row, e) from e
        if config.activation and kind not in config.silu_layers:
            activate(layer, config.activation)
        layers.append(layer)
        sources.append(used)
        channels.append(out)
    if not isinstance(layers[-1], Detect):
        raise CheckpointError(
            f"a model's description ends with a head ({', '.join(HEADS)}), "
            f"this one with {reprlib.repr(config.rows[-1])}"
        )
    graph = LayerGraph(layers, sources, config).eval()
    graph.head.set_stride(config.strides or strides_of(graph, config.channels, config.rows))
    return graph


def activate(layer: nn.Module, text: str) -> None:
    """Give the convolutions that have no activation of their own the description's."""
    for module in layer.modules():
        if isinstance(module, Conv) and type(module.act) is nn.SiLU:
            module.act = activation(text)


def strides_of(graph: LayerGraph, channels: int, rows: Sequence[Row]) -> list[int]:
    """The width of a cell of each level in pixels of the image, found by running shapes only.

    ``channels`` of the image; ``rows`` are what the layers were made of, for messages.

    Raises:
        CheckpointError: the layers do not fit one another.
    """
    side = 256
    outputs: dict[int, Any] = {-1: torch.empty(1, channels, side, side, device="meta")}
    last = len(graph.sources) - 1
    with torch.no_grad(), ShapesAlone():
        for i in range(last):
            try:
                outputs[i] = outline(graph.model[i])(*(outputs[s] for s in graph.sources[i]))
                given = sum(map(torch.numel, outputs[i] if isinstance(outputs[i], (list, tuple)) else [outputs[i]]))
                if given > MAX_FEATURE:
                    raise ValueError(f"it gives {given:,} values for an image of {side} px")
            except REFUSALS as e:
                raise misfit(i, rows[i], e) from e
    levels = graph.sources[last][: cast(Any, graph.model[-1]).num_levels]
    strides = [side // max(outputs[s].shape[-1], 1) for s in levels]
    if min(strides) < 1:
        raise CheckpointError("a level of the model's head is larger than the image; expected one that is scaled down")
    return strides
