"""ResNet, ResNeXt and Wide ResNet in the layout of torchvision's state dicts, for classification, without torchvision.

Originals: arXiv 1512.03385, 1611.05431, 1605.07146; torchvision (BSD-3-Clause); those for images of 32 pixels in the
layout of akamaster/pytorch_resnet_cifar10 (BSD-2-Clause). Layouts, keys and numbers are facts taken over, the code is
ours. Everything is read from the tensors: the kind of block, how many, how wide, in how many groups, and the classes,
so that a fine-tuned file with another ``fc`` loads as it is. ``(B, C, H, W)`` becomes logits ``(B, classes)``, for any
H and W.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import CIFAR10_CLASSES, class_names
from deploykit.models.family import Family, classifier_spec, imagenet_input
from deploykit.models.fuse import fold_conv_bn, fuse_model, shared_copy
from deploykit.models.layers.conv import FoldingSequential
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.spec import Fit, ModelSpec

WEIGHTS_LICENCE = "BSD-3-Clause (torchvision), BSD-2-Clause (CIFAR-10's); the data sets have terms of their own"

SIZE = 224
BASE = 64  # channels of the stem and of the first stage


@dataclass(frozen=True)
class ResnetConfig:
    """A layer graph: ``depths`` blocks per stage; ``inner`` channels of the first stage's middle convolutions.

    ``small``: for images of 32 pixels: a stem of 3 x 3 that keeps the size, ``inner`` channels wide, and shortcuts
    that add zeros for the channels that are new.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    inner: int = BASE
    groups: int = 1
    channels: int = 3
    num_classes: int = 1000
    small: bool = False

    @property
    def base(self) -> int:
        """Channels of the stem."""
        return self.inner if self.small else BASE


VARIANTS = {
    "resnet18": ResnetConfig("basic", (2, 2, 2, 2)),
    "resnet34": ResnetConfig("basic", (3, 4, 6, 3)),
    "resnet50": ResnetConfig("bottleneck", (3, 4, 6, 3)),
    "resnet101": ResnetConfig("bottleneck", (3, 4, 23, 3)),
    "resnet152": ResnetConfig("bottleneck", (3, 8, 36, 3)),
    "resnext50_32x4d": ResnetConfig("bottleneck", (3, 4, 6, 3), 128, 32),
    "resnext101_32x8d": ResnetConfig("bottleneck", (3, 4, 23, 3), 256, 32),
    "wide_resnet50_2": ResnetConfig("bottleneck", (3, 4, 6, 3), 128),
    "wide_resnet101_2": ResnetConfig("bottleneck", (3, 4, 23, 3), 128),
    "resnet20_cifar10": ResnetConfig("basic", (3, 3, 3), 16, num_classes=10, small=True),
    "resnet56_cifar10": ResnetConfig("basic", (9, 9, 9), 16, num_classes=10, small=True),
}


class Block(nn.Module):
    """Two 3 x 3 convolutions, or three with the middle one of 3 x 3, and what goes in added: ``(B, C, H, W)``.

    The stride is in the first 3 x 3 convolution, as in torchvision; the paper has it in the 1 x 1 convolution before.
    """

    def __init__(
        self, channels: int, inner: int, out: int, kind: str, stride: int, groups: int, *, zeros: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.new = stride, out - channels if zeros else 0
        if kind == "basic":
            shapes = [(channels, out, 3, stride, 1), (out, out, 3, 1, 1)]
        else:
            shapes = [(channels, inner, 1, 1, 1), (inner, inner, 3, stride, groups), (inner, out, 1, 1, 1)]
        self.count = len(shapes)
        for i, (before, after, kernel, step, parts) in enumerate(shapes, 1):
            conv = nn.Conv2d(before, after, kernel, step, kernel // 2, groups=parts, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(after))
        self.downsample: nn.Module | None = None
        if (stride > 1 or channels != out) and not zeros:
            self.downsample = FoldingSequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.count + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            if i < self.count:
                y = y.relu()
        return (y + self.shortcut(x)).relu()

    def shortcut(self, x: Tensor) -> Tensor:
        """What is added to the convolutions' result."""
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.new:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return x

    def fuse(self, path: str) -> nn.Module:
        """The same with every batch norm folded into its convolution."""
        new = shared_copy(self)
        for i in range(1, self.count + 1):
            _fold_pair(self, new, f"conv{i}", f"bn{i}", path)
        if self.downsample is not None:
            new.downsample = fuse_model(self.downsample, f"{path}.downsample")
        return new


def _fold_pair(old: nn.Module, new: nn.Module, conv: str, norm: str, path: str) -> None:
    before, after = old.get_submodule(conv), old.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(after, nn.BatchNorm2d)
    setattr(new, conv, fold_conv_bn(before, after, f"{path}.{conv}".lstrip(".")))
    setattr(new, norm, nn.Identity())


class Resnet(nn.Module):
    """``(B, C, H, W)`` to logits ``(B, classes)``."""

    def __init__(self, config: ResnetConfig) -> None:
        super().__init__()
        self.stages = len(config.depths)
        channels = config.base
        kernel, stride = (3, 1) if config.small else (7, 2)
        self.conv1 = nn.Conv2d(config.channels, channels, kernel, stride, kernel // 2, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(channels)
        self.maxpool = nn.Identity() if config.small else nn.MaxPool2d(3, 2, 1)
        for i, depth in enumerate(config.depths):
            inner = config.inner << i
            out = config.base * (1 if config.block == "basic" else 4) << i
            blocks = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                block = Block(channels, inner, out, config.block, stride, config.groups, zeros=config.small)
                blocks.append(block)
                channels = out
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.last = "linear" if config.small else "fc"
        self.add_module(self.last, nn.Linear(channels, config.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(images)).relu())
        for i in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
        out: Tensor = self.get_submodule(self.last)(x.mean((2, 3)))
        return out

    def fuse(self, path: str) -> nn.Module:
        """The same with every batch norm folded into its convolution."""
        new = shared_copy(self)
        new._modules = {name: None if m is None else fuse_model(m, name) for name, m in self._modules.items()}
        _fold_pair(self, new, "conv1", "bn1", path)
        return new


class ResnetFamily(Family[ResnetConfig]):
    """ResNets by torchvision's keys, and by those of the networks for images of 32 pixels."""

    name = "ResNet"
    variants = VARIANTS
    signature = frozenset({"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight"})

    def shapes_of(self, checkpoint: Checkpoint) -> CheckpointShapes | None:
        """With the checkpoint's name of the last layer: ``fc``, or ``fc.1`` where a dropout was put before it."""
        shapes = super().shapes_of(checkpoint)
        last = [key for key in checkpoint.state_dict if re.fullmatch(r"fc(\.[0-9]{1,2})?\.weight", key)]
        if shapes is None or len(last) != 1:
            return shapes
        return replace(shapes, key_map={"fc.weight": last[0], "fc.bias": last[0].removesuffix("weight") + "bias"})

    def config_of(self, shapes: CheckpointShapes) -> ResnetConfig:
        path, keys = shapes.checkpoint.path, shapes.shapes.keys()
        stem, channels, kernel, _ = shapes.weight_shape("conv1")
        small = kernel == 3 and "linear.weight" in keys and not any("downsample" in key for key in keys)
        if not small and (kernel, stem) != (7, BASE):
            raise CheckpointError(
                f"{path} has the tensors of a ResNet whose first convolution has {stem} channels and a kernel "
                f"of {kernel}x{kernel}: torchvision's have {BASE} and 7x7, other stems are not built"
            )
        if not small and not shapes.key_map:
            others = sorted(key for key in keys if not key.startswith(("conv1.", "bn1.", "layer")))
            found = f"it has {', '.join(others[:3])}" if others else "it has no other tensors"
            raise CheckpointError(
                f"{path} has the tensors of a ResNet and not one layer fc, its classifier; {found}: a backbone, "
                "or another head, which is not built"
            )
        middle = shapes.weight_shape("layer1.0.conv2")
        bottleneck = "layer1.0.conv3.weight" in keys
        return ResnetConfig(
            block="bottleneck" if bottleneck else "basic",
            depths=tuple(shapes.count_layers(f"layer{i}.") for i in range(1, shapes.count_layers("layer"))),
            inner=middle[0] if bottleneck else stem,
            groups=max(middle[0] // middle[1], 1) if bottleneck else 1,
            channels=channels,
            num_classes=shapes.weight_shape("linear" if small else "fc", 2)[0],
            small=small,
        )

    def network(self, config: ResnetConfig) -> Resnet:
        return Resnet(config)

    def spec(self, config: ResnetConfig, names: tuple[str, ...] | None) -> ModelSpec:
        if names is None and config.small and config.num_classes == len(CIFAR10_CLASSES):
            names = CIFAR10_CLASSES
        fit = Fit(kind="crop", stride=1, crop_share=1.0 if config.small else 0.875, resample="bilinear")
        canvas = imagenet_input(32 if config.small else SIZE, fit, config.channels)
        return classifier_spec(canvas, class_names(config.num_classes, names))

    def name_of(self, config: ResnetConfig) -> str:
        width = f"-{config.groups}x{config.inner // config.groups}d" if config.groups > 1 else ""
        name = self.variant_of(config, "channels") or (
            f"resnet-{config.block}-{'-'.join(map(str, config.depths))}{width}"
        )
        return name if config.channels == 3 else f"{name}-channels-{config.channels}"


FAMILY = ResnetFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
