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
from deploykit.models.classifier_head import HeadLayer, LayeredHead, activation_of, head_assumption, head_layers
from deploykit.models.family import Family, classifier_spec, imagenet_input
from deploykit.models.fuse import fold_conv_bn, fuse_model, shared_copy
from deploykit.models.layers.conv import FoldingSequential
from deploykit.models.loading.file_facts import architecture
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.spec import Fit, ModelSpec

WEIGHTS_LICENCE = "BSD-3-Clause (torchvision), BSD-2-Clause (CIFAR-10's); the data sets have terms of their own"

SIZE = 224
BASE = 64  # channels of the stem and of the first stage


@dataclass(frozen=True)
class ResnetConfig:
    """A layer graph: ``depths`` blocks per stage; ``inner`` channels of the first stage's middle convolutions.

    ``small``: for images of 32 pixels: a stem of 3 x 3 that keeps the size, ``inner`` channels wide, and shortcuts
    that add zeros for the channels that are new. ``stem``: of the others, ``small`` for one of 3 x 3 that keeps the
    size and has no pooling behind it. ``layers``: of a head that has several; ``bias``: of a head that is one.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    inner: int = BASE
    groups: int = 1
    channels: int = 3
    num_classes: int = 1000
    small: bool = False
    stem: Literal["imagenet", "small"] = "imagenet"
    layers: tuple[HeadLayer, ...] = ()
    bias: bool = True
    head_activation: str = "relu"

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


PLAIN = re.compile(
    r"(?:tv_|ssl_|swsl_|ig_|fb_|gluon_)?((?:wide_)?resne(?:t|xt)_?[0-9]{1,4}(?:_[0-9]{1,2}x[0-9]{1,2}d|_2)?)"
    r"(?:_v1b|_cifar(?:10)?|_cifar100)?"
)
"""Names of networks that compute what torchvision's of these tensors do, those of timm and of networks for CIFAR."""


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
        keeps_size = config.small or config.stem == "small"
        kernel, stride = (3, 1) if keeps_size else (7, 2)
        self.conv1 = nn.Conv2d(config.channels, channels, kernel, stride, kernel // 2, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(channels)
        self.maxpool = nn.Identity() if keeps_size else nn.MaxPool2d(3, 2, 1)
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
        head: nn.Module = nn.Linear(channels, config.num_classes, bias=config.bias)
        if config.layers:
            head = LayeredHead(channels, config.layers, config.head_activation)
        self.add_module(self.last, head)

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

    choices = ("head_activation",)

    def shapes_of(self, checkpoint: Checkpoint) -> CheckpointShapes | None:
        """With the checkpoint's names of layers: ``fc.1`` or ``linear`` for ``fc``, ``shortcut`` for ``downsample``."""
        shapes = super().shapes_of(checkpoint)
        if shapes is None:
            return None
        keys = {}
        for key in checkpoint.state_dict:
            if ".shortcut." in key:
                keys[key.replace(".shortcut.", ".downsample.")] = key
        last = [key for key in checkpoint.state_dict if re.fullmatch(r"(fc(\.[0-9]{1,2})?|linear)\.weight", key)]
        if len(last) == 1 and (last[0] != "linear.weight" or keys):
            keys |= {"fc.weight": last[0], "fc.bias": last[0].removesuffix("weight") + "bias"}
        return replace(shapes, key_map=keys)

    def config_of(self, shapes: CheckpointShapes) -> ResnetConfig:
        path, keys = shapes.checkpoint.path, shapes.shapes.keys()
        stem, channels, kernel, _ = shapes.weight_shape("conv1")
        shortcuts = any("downsample" in key or ".shortcut." in key for key in keys)
        small = kernel == 3 and "linear.weight" in keys and not shortcuts
        if not small and (kernel, stem) not in ((7, BASE), (3, BASE)):
            raise CheckpointError(
                f"{path} has the tensors of a ResNet whose first convolution has {stem} channels and a kernel "
                f"of {kernel}x{kernel}: torchvision's have {BASE} and 7x7 (for small images 3x3), other stems are not "
                "built"
            )
        layers = () if "fc.weight" in shapes.key_map else head_layers(shapes, "fc")
        if not small and not layers and "fc.weight" not in shapes.key_map:
            others = sorted(key for key in keys if not key.startswith(("conv1.", "bn1.", "layer")))
            found = f"it has {', '.join(others[:3])}" if others else "it has no other tensors"
            raise CheckpointError(
                f"{path} has the tensors of a ResNet and no fc, its classifier; {found}: a backbone, or another head, "
                "which is not built"
            )
        last = "linear" if small else "fc"
        middle = shapes.weight_shape("layer1.0.conv2")
        bottleneck = "layer1.0.conv3.weight" in keys
        config = ResnetConfig(
            block="bottleneck" if bottleneck else "basic",
            depths=tuple(shapes.count_layers(f"layer{i}.") for i in range(1, shapes.count_layers("layer"))),
            inner=middle[0] if bottleneck else stem,
            groups=max(middle[0] // middle[1], 1) if bottleneck else 1,
            channels=channels,
            num_classes=layers[-1].width if layers else shapes.weight_shape(last, 2)[0],
            small=small,
            stem="small" if kernel == 3 and not small else "imagenet",
            layers=layers,
            bias=bool(layers) or shapes.key_map.get(f"{last}.bias", f"{last}.bias") in keys,
            head_activation=activation_of(shapes, layers),
        )
        _check_name(shapes, config)
        return config

    def assumed(self, config: ResnetConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        said = list(head_assumption(shapes, "fc", config.layers))
        if config.stem == "small":
            said.append(
                "a first convolution of 3x3 with a stride of 1 and no pooling behind it, as for images of 32 pixels: "
                "no tensor tells"
            )
        if _named(shapes) is None:
            said.append(
                "torchvision's ResNet: an anti-aliased or otherwise pooled one (resnetblur, resnetaa), or one with the "
                "strides in its 1x1 convolutions, has the same tensors"
            )
        return tuple(said)

    def network(self, config: ResnetConfig) -> Resnet:
        return Resnet(config)

    def spec(self, config: ResnetConfig, names: tuple[str, ...] | None) -> ModelSpec:
        if names is None and _is_small(config) and config.num_classes == len(CIFAR10_CLASSES):
            names = CIFAR10_CLASSES
        fit = Fit(kind="crop", stride=1, crop_share=1.0 if _is_small(config) else 0.875, resample="bilinear")
        canvas = imagenet_input(32 if _is_small(config) else SIZE, fit, config.channels)
        return classifier_spec(canvas, class_names(config.num_classes, names))

    def name_of(self, config: ResnetConfig) -> str:
        width = f"-{config.groups}x{config.inner // config.groups}d" if config.groups > 1 else ""
        name = self.variant_of(config, "channels", "stem", "layers", "bias", "head_activation") or (
            f"resnet-{config.block}-{'-'.join(map(str, config.depths))}{width}"
        )
        name = f"{name}-small" if config.stem == "small" else name
        return name if config.channels == 3 else f"{name}-channels-{config.channels}"


def _is_small(config: ResnetConfig) -> bool:
    """Whether it is for images of 32 pixels."""
    return config.small or config.stem == "small"


def _named(shapes: CheckpointShapes) -> str | None:
    """The ResNet that the file names, by our name where we have one; None: it names none.

    Raises:
        CheckpointError: it names one whose tensors are torchvision's, and whose computation is not.
    """
    found = architecture(shapes.checkpoint)
    if found is None or "res" not in found[0]:
        return None
    name = re.fullmatch(PLAIN, found[0])
    if name is None:
        raise CheckpointError(
            f"{shapes.checkpoint.path} is a {found[0]} by its {found[1]}, which may have torchvision's tensors and "
            f"computes something else: it is not built; with timm installed: --timm-model {found[0]}"
        )
    return name[1]


def _check_name(shapes: CheckpointShapes, config: ResnetConfig) -> None:
    """Check that the tensors are of the network that the file names.

    Raises:
        CheckpointError: they are not, or it is not built.
    """
    known = VARIANTS.get(_named(shapes) or "")
    if known is None:
        return
    told, found = ((c.block, c.depths, c.inner, c.groups) for c in (known, config))
    if told != found:
        raise CheckpointError(
            f"{shapes.checkpoint.path} names a {_named(shapes)}, whose blocks are {told[0]}, {list(told[1])} of them, "
            f"{told[2]} wide in {told[3]} groups, and its tensors are of {found[0]}, {list(found[1])}, {found[2]} in "
            f"{found[3]}: the name or the weights are of another model"
        )


FAMILY = ResnetFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
