"""The YOLOv6 network: backbone, neck and head, from a :class:`YOLOv6Config`.

Source of the facts: meituan/YOLOv6 ``yolov6/models/{efficientrep,reppan,yolo}.py``, tags 0.1.0 to 0.4.0 (GPL-3.0); the
code is ours. State-dict keys are the original's without its wrappers (see ``_yolov6_checkpoint``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from deploykit.models.families.yolov6.bep import CSPSPPF, BepC3, BiFusion, Chain, SimSPPF, Transpose
from deploykit.models.families.yolov6.config import Names, Stage, YOLOv6Config
from deploykit.models.families.yolov6.head import DistanceHead, FreeHead, ObjectnessHead
from deploykit.models.families.yolov6.rep_vgg import QARepVGG, RepVGG
from deploykit.models.layers.conv import Conv


class YOLOv6(nn.Module):
    """``(B, 3, H, W)`` to rows ``(B, N, 5 + classes)``; weights are torch's defaults.

    ``config`` is what it was built from.
    """

    def __init__(self, config: YOLOv6Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.neck = Neck(config)
        channels = (config.down[-1].width, *(stage.width for stage in config.up))
        self.detect: FreeHead = (
            ObjectnessHead(config.num_classes, channels)
            if config.objectness
            else DistanceHead(config.num_classes, channels, config.reg_max)
        )
        self.eval()

    @property
    def head(self) -> FreeHead:
        """The part that gives the rows."""
        return self.detect

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.detect(*self.neck(self.backbone(images))))


class Backbone(nn.Module):
    """``(B, 3, H, W)`` to the feature maps C2 (where the neck takes it), C3, C4, C5 [and C6], the finest first."""

    def __init__(self, config: YOLOv6Config) -> None:
        super().__init__()
        self.first = 2 if config.bifusion else 3
        self.stem = _block(config, 3, config.stem, 2)
        channels = config.stem
        for i, stage in enumerate(config.stages, start=2):
            layers = [_block(config, channels, stage.width, 2), _stage(config, stage.width, stage)]
            if i == len(config.stages) + 1:
                pool = CSPSPPF if config.cspsppf else SimSPPF
                layers.append(pool(stage.width, stage.width, _activation(config)))
            self.add_module(f"ERBlock_{i}", nn.Sequential(*layers))
            channels = stage.width

    def forward(self, images: Tensor) -> list[Tensor]:
        x: Tensor = self.stem(images)
        features = []
        for i, stage in enumerate(self._stages(), start=2):
            x = stage(x)
            if i >= self.first:
                features.append(x)
        return features

    def _stages(self) -> list[nn.Module]:
        return [module for name, module in self.named_children() if name != "stem"]


class Neck(nn.Module):
    """Feature maps of the backbone to as many of the head, by a way to the finest level and one back."""

    def __init__(self, config: YOLOv6Config) -> None:
        super().__init__()
        self.bifusion = config.bifusion
        self.names = Names.of(config.levels)
        widths = [stage.width for stage in config.stages]
        channels, laterals = widths[-1], []
        for i, (name, stage) in enumerate(zip(self.names.down, config.down, strict=True)):
            c, same, large = stage.width, widths[-2 - i], widths[-3 - i]
            laterals.append(c)
            self.add_module(f"reduce_layer{i}", Conv(channels, c, act=nn.ReLU()))
            if config.bifusion:
                self.add_module(f"Bifusion{i}", BiFusion(same, large, c))
            else:
                self.add_module(f"upsample{i}", Transpose(c))
            self.add_module(name, _stage(config, c if config.bifusion else c + same, stage))
            channels = c
        rest = zip(self.names.ways, config.ways, self.names.up, config.up, reversed(laterals), strict=True)
        for way, width, name, stage, lateral in rest:
            self.add_module(way, Conv(channels, width, 3, 2, act=nn.ReLU()))
            self.add_module(name, _stage(config, width + lateral, stage))
            channels = stage.width

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        x, laterals = features[-1], []
        for i, name in enumerate(self.names.down):
            x = self._layer(f"reduce_layer{i}", x)
            laterals.append(x)
            if self.bifusion:
                x = self._layer(f"Bifusion{i}", x, features[-2 - i], features[-3 - i])
            else:
                x = torch.cat((self._layer(f"upsample{i}", x), features[-2 - i]), 1)
            x = self._layer(name, x)
        outputs = [x]
        for way, name, lateral in zip(self.names.ways, self.names.up, reversed(laterals), strict=True):
            x = self._layer(name, torch.cat((self._layer(way, x), lateral), 1))
            outputs.append(x)
        return outputs

    def _layer(self, name: str, *inputs: Tensor) -> Tensor:
        return cast(Tensor, getattr(self, name)(*inputs))


def _block(config: YOLOv6Config, c1: int, c2: int, stride: int = 1) -> nn.Module:
    if config.block == "repvgg":
        return RepVGG(c1, c2, stride)
    if config.block == "qarepvgg":
        return QARepVGG(c1, c2, stride, mean=config.mean)
    block = Conv(c1, c2, 3, stride, act=_activation(config)())
    if config.biased:
        block.conv.bias = nn.Parameter(torch.zeros(c2))
    return block


def _stage(config: YOLOv6Config, c1: int, stage: Stage) -> nn.Module:
    """A stage whose blocks keep the size."""

    def block(a: int, b: int) -> nn.Module:
        return _block(config, a, b)

    if not stage.hidden:
        return Chain(c1, stage.width, stage.depth, block)
    return BepC3(c1, stage.width, stage.depth, block, stage.hidden, _activation(config))


def _activation(config: YOLOv6Config) -> Callable[[], nn.Module]:
    return nn.SiLU if config.activation == "silu" else nn.ReLU
