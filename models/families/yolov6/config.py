"""YOLOv6Config: the layer graph of a YOLOv6 network, from a variant's multiples or a checkpoint's tensors.

The original describes its models by Python files, which no checkpoint carries. But every number of such a description
shows in the shapes of the tensors, so that models of any width and depth are rebuilt from their weights alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from deploykit.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""

Kind = Literal["repvgg", "qarepvgg", "conv"]
Activation = Literal["relu", "silu"]

DEPLOYED_STEM = "backbone.stem.rbr_reparam.weight"  # of a network that was switched to deploy
MAX_WIDTH, MAX_DEPTH = 65_536, 1000
REG_MAX = 16  # of every published model whose boxes are distributions


class Stage(NamedTuple):
    """A chain of ``depth`` blocks of ``width`` channels; with ``hidden`` channels in a cross-stage block (0: plain)."""

    width: int
    depth: int
    hidden: int = 0


@dataclass(frozen=True)
class YOLOv6Config:
    """A network.

    Attributes:
        block: what the stages are made of; ``conv`` is a 3x3 convolution with batch norm.
        stem: channels of the first layer.
        stages: of the backbone, C2 to C5 or C6.
        down: of the neck's way to the large level, the coarse one first.
        ways: channels of the neck's strided convolutions.
        up: of the way back.
        bifusion: whether three levels are joined there, or two.
        cspsppf: the pooling of the deepest stage.
        num_classes: how many.
        reg_max: 16 where a box' sides are distributions, else 0.
        objectness: whether the head has one, which those of 0.1 do.
        biased: the blocks' convolutions have a bias before their batch norm, as in 0.2 and 0.3.
        activation: of ``conv`` blocks and of the cross-stage blocks around them.
        mean: the second version of ``qarepvgg``.
    """

    block: Kind
    stem: int
    stages: tuple[Stage, ...]
    down: tuple[Stage, ...]
    ways: tuple[int, ...]
    up: tuple[Stage, ...]
    bifusion: bool
    cspsppf: bool
    num_classes: int
    reg_max: int = 0
    objectness: bool = False
    biased: bool = False
    activation: Activation = "relu"
    mean: bool = False

    @property
    def levels(self) -> int:
        """Feature maps that the head takes: 3, or 4 in the P6 models."""
        return len(self.up) + 1


@dataclass(frozen=True)
class Names:
    """The submodules of a neck: blocks and layers by their names in the original."""

    down: tuple[str, ...]
    ways: tuple[str, ...]
    up: tuple[str, ...]

    @staticmethod
    def of(levels: int) -> Names:
        """The names in a neck of three or of four levels."""
        if levels == 3:
            return Names(("Rep_p4", "Rep_p3"), ("downsample2", "downsample1"), ("Rep_n3", "Rep_n4"))
        return Names(
            ("Rep_p5", "Rep_p4", "Rep_p3"),
            ("downsample2", "downsample1", "downsample0"),
            ("Rep_n4", "Rep_n5", "Rep_n6"),
        )


@dataclass(frozen=True)
class Scale:
    """A published description before it is multiplied: depth, width, and what kind of network it is."""

    depth: float
    width: float
    block: Kind = "repvgg"
    hidden: float = 0.0  # share of a cross-stage block's channels; 0: plain chains
    levels: int = 3
    generation: int = 4
    activation: Activation = "relu"
    reg_max: int = 0
    mean: bool = False
    cspsppf: bool | None = None  # None: where there are plain chains, from 0.3 on

    def config(self, num_classes: int) -> YOLOv6Config:
        """The network that it describes."""

        def stage(channels: int, repeats: int) -> Stage:
            width = _divisible(channels * self.width)
            count = max(round(repeats * self.depth), 1)
            if not self.hidden:
                return Stage(width, count)
            return Stage(width, max(count // 2, 1), int(width * self.hidden))

        backbone = (128, 256, 512, 1024) if self.levels == 3 else (128, 256, 512, 768, 1024)
        down = (256, 128) if self.levels == 3 else (512, 256, 128)
        up = (256, 512) if self.levels == 3 else (256, 512, 1024)
        late = self.generation >= 3
        return YOLOv6Config(
            block=self.block,
            stem=_divisible(64 * self.width),
            stages=tuple(stage(c, n) for c, n in zip(backbone, (6, 12, 18, 6, 6), strict=False)),
            down=tuple(stage(c, 12) for c in down),
            ways=tuple(_divisible(c * self.width) for c in (down[-1], *up[:-1])),
            up=tuple(stage(c, 12) for c in up),
            bifusion=late,
            cspsppf=late and not self.hidden if self.cspsppf is None else self.cspsppf,
            num_classes=num_classes,
            reg_max=self.reg_max,
            objectness=self.generation == 1,
            biased=self.block == "conv" and self.generation < 4,
            activation=self.activation,
            mean=self.mean,
        )


def _divisible(x: float, by: int = 8) -> int:
    return math.ceil(x / by) * by


def config_from_shapes(found: Shapes) -> YOLOv6Config:
    """The network whose tensors these are, under the names without wrappers.

    What no shape says is left at its default: the activation, and which version of ``qarepvgg`` it is.

    Raises:
        CheckpointError: a tensor that says it is missing, or says what no network has.
    """
    deepest = 6 if any(key.startswith("backbone.ERBlock_6.") for key in found) else 5
    names = Names.of(deepest - 2)
    bifusion = any(key.startswith("neck.Bifusion0.") for key in found)
    block: Kind = "conv"
    deployed = DEPLOYED_STEM in found
    if "backbone.stem.rbr_1x1.weight" in found or (deployed and "backbone.stem.bn.weight" in found):
        block = "qarepvgg"
    elif "backbone.stem.rbr_1x1.conv.weight" in found or deployed:
        block = "repvgg"
    boxes = _size(found, "detect.reg_preds.0.weight", 0)
    if boxes not in (4, 4 * (REG_MAX + 1)):
        raise CheckpointError(
            f"its head predicts {boxes} values per box, where a YOLOv6 detector has 4 or {4 * (REG_MAX + 1)}"
        )
    pooled = f"backbone.ERBlock_{deepest}.2"
    return YOLOv6Config(
        block=block,
        stem=_block_width(found, "backbone.stem"),
        stages=tuple(_stage(found, f"backbone.ERBlock_{i}.1") for i in range(2, deepest + 1)),
        down=tuple(_stage(found, f"neck.{name}") for name in names.down),
        ways=tuple(_size(found, f"neck.{name}.conv.weight", 0) for name in names.ways),
        up=tuple(_stage(found, f"neck.{name}") for name in names.up),
        bifusion=bifusion,
        cspsppf=f"{pooled}.cv7.conv.weight" in found,
        num_classes=_size(found, "detect.cls_preds.0.weight", 0),
        reg_max=boxes // 4 - 1,
        objectness="detect.obj_preds.0.weight" in found,
        biased="backbone.stem.conv.bias" in found,
    )


def _stage(found: Shapes, path: str) -> Stage:
    """What a stage at ``path`` is, plain or cross-stage."""
    if f"{path}.cv3.conv.weight" in found:
        hidden = _size(found, f"{path}.cv1.conv.weight", 0)
        return Stage(_size(found, f"{path}.cv3.conv.weight", 0), _count(found, f"{path}.m"), hidden)
    return Stage(_block_width(found, f"{path}.conv1"), _count(found, path))


def _count(found: Shapes, path: str) -> int:
    """Blocks of the chain at ``path``: the first, and those with numbers."""
    numbers = {match[1] for key in found if (match := re.match(rf"{re.escape(path)}\.block\.([0-9]{{1,4}})\.", key))}
    if len(numbers) >= MAX_DEPTH:
        raise CheckpointError(f"{path} has more than {MAX_DEPTH} blocks, the limit")
    return 1 + len(numbers)


def _block_width(found: Shapes, path: str) -> int:
    for name in ("rbr_dense.conv", "rbr_reparam", "conv"):
        if f"{path}.{name}.weight" in found:
            return _size(found, f"{path}.{name}.weight", 0)
    raise CheckpointError(f"it has no convolution at {path}")


def _size(found: Shapes, key: str, axis: int) -> int:
    shape = found.get(key)
    if shape is None or len(shape) <= axis or not 1 <= shape[axis] <= MAX_WIDTH:
        state = "is missing" if shape is None else f"is {list(shape)}"
        raise CheckpointError(f"the tensor {key}, which says how wide it is, {state}")
    return shape[axis]
