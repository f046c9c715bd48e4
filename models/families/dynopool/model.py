"""DynOPool (arXiv 2205.15254) in the networks of its tables: VGG16 for CIFAR-100, EfficientNet-B0, HRNet-W48.

There is no public code and there are no weights: networks are those of their papers (VGG 1409.1556 with batch norm as
is usual for CIFAR, EfficientNet 1905.11946, HRNet 1908.07919), and which of their layers are replaced is decided here.

* VGG16: each of the five poolings.
* EfficientNet-B0: the strides of the four stages that have one; the resizing comes first, and the depthwise convolution
  is one of stride 1. The first convolution keeps its stride.
* HRNet-W48: the second stride at the beginning, and the one that begins each further branch. What goes down from one
  branch to another gets that branch's size by the same points.

All keys are ours. A checkpoint is a plain state dict, from whose tensors widths, depths and ratios are read. For export
ratios are frozen (:class:`deploykit.models.families.dynopool.resize.FixedPool`); they are so as soon as a model is
folded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import VOC_CLASSES
from deploykit.models.families.dynopool.hrnet import HrNet, conv_bn
from deploykit.models.families.dynopool.mbconv import MBConv
from deploykit.models.families.dynopool.resize import DynOPool, complexity
from deploykit.models.family import Family, classifier_spec, imagenet_input
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.models.registry import ReferenceModel
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

WEIGHTS_LICENCE = "none were published"

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SMALLEST, LARGEST = 1 / 64, 4.0  # ratios; with others, a checkpoint would ask for maps that no memory holds
MAX_COUNT = 64  # far beyond any real one, so that a hostile file builds nothing large


@dataclass(frozen=True)
class Stage:
    """Blocks of an EfficientNet: channels, how many, kernel, widening, and whether the first one resizes."""

    channels: int
    count: int
    kernel: int
    expand: int
    resize: bool


B0 = (
    Stage(16, 1, 3, 1, False), Stage(24, 2, 3, 6, True), Stage(40, 2, 5, 6, True), Stage(80, 3, 3, 6, True),
    Stage(112, 3, 5, 6, False), Stage(192, 4, 5, 6, True), Stage(320, 1, 3, 6, False),
)  # fmt: skip


class Vgg(nn.Module):
    """``(B, 3, H, W)`` to logits ``(B, classes)``: blocks of convolutions, each before a resizing, and a mean."""

    def __init__(self, widths: tuple[tuple[int, ...], ...], num_classes: int) -> None:
        super().__init__()
        self.blocks, self.pools = nn.ModuleList(), nn.ModuleList()
        before = 3
        for block in widths:
            layers = []
            for width in block:
                layers.append(conv_bn(before, width, 3, act=nn.ReLU()))
                before = width
            self.blocks.append(nn.Sequential(*layers))
            self.pools.append(DynOPool())
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for block, pool in zip(self.blocks, self.pools, strict=True):
            x = pool(block(x))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits

    def pools_before(self, name: str) -> tuple[DynOPool, ...]:
        """The resizings between the image and a layer, by its name."""
        parts = name.split(".")
        count = int(parts[1]) if parts[0] == "blocks" else len(self.pools)
        return tuple(pool for pool in self.pools[:count] if isinstance(pool, DynOPool))


class EfficientNet(nn.Module):
    """``(B, 3, H, W)`` to logits ``(B, classes)``."""

    def __init__(self, stages: tuple[Stage, ...], num_classes: int, stem: int = 32, last: int = 1280) -> None:
        super().__init__()
        self.stem = conv_bn(3, stem, 3, 2, nn.SiLU())
        self.stages = nn.ModuleList()
        before = stem
        for stage in stages:
            blocks = []
            for i in range(stage.count):
                first = stage.resize and i == 0
                blocks.append(MBConv(before, stage.channels, stage.kernel, stage.expand, resize=first))
                before = stage.channels
            self.stages.append(nn.Sequential(*blocks))
        self.head = conv_bn(before, last, act=nn.SiLU())
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.classifier(self.head(x).mean((2, 3)))
        return logits

    def pools_before(self, name: str) -> tuple[DynOPool, ...]:
        """The resizings between the image and a layer, by its name."""
        parts = name.split(".")
        last = {"stem": -1, "stages": int(parts[1]) if parts[0] == "stages" else 0}.get(parts[0], len(self.stages) - 1)
        return tuple(m for stage in self.stages[: last + 1] for m in stage.modules() if isinstance(m, DynOPool))


@dataclass(frozen=True)
class VggConfig:
    """The layer graph of a :class:`Vgg`."""

    num_classes: int = 100
    widths: tuple[tuple[int, ...], ...] = VGG16


@dataclass(frozen=True)
class EfficientNetConfig:
    """The layer graph of an :class:`EfficientNet`."""

    num_classes: int = 1000
    stages: tuple[Stage, ...] = B0
    stem: int = 32
    last: int = 1280


@dataclass(frozen=True)
class HrNetConfig:
    """The layer graph of an :class:`deploykit.models.families.dynopool.hrnet.HrNet`."""

    num_classes: int = len(VOC_CLASSES)
    width: int = 48
    modules: tuple[int, ...] = (1, 4, 3)
    stem: int = 64


Config = VggConfig | EfficientNetConfig | HrNetConfig
VARIANTS: dict[str, Config] = {
    "dynopool_vgg16": VggConfig(),  # CIFAR-100
    "dynopool_efficientnet_b0": EfficientNetConfig(),  # ImageNet
    "dynopool_hrnet_w48": HrNetConfig(),  # PASCAL VOC
}


def layer_macs(network: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer for an image of ``size`` (height, width), by name."""
    found: dict[str, int] = {}

    def counted(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight = module.weight
            assert isinstance(weight, Tensor)
            area = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
            found[name] = weight.numel() * area

        return hook

    layers = {name: m for name, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    handles = [module.register_forward_hook(counted(name)) for name, module in layers.items()]
    weight = next(network.parameters())
    trained = [module for module in network.modules() if module.training]
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, *size, device=weight.device))
    for module in trained:  # and not those that were frozen in a network that trains
        module.training = True
    for handle in handles:
        handle.remove()
    return found


def complexity_loss(network: Vgg | EfficientNet | HrNet, size: tuple[int, int]) -> Tensor:
    """A loss term that keeps maps small: the network's 10^9 multiply-adds for an image of ``size``, with a gradient for
    every ratio."""
    macs = layer_macs(network, size)
    return complexity((count, network.pools_before(name)) for name, count in macs.items())


def _vgg_of(shapes: CheckpointShapes) -> VggConfig:
    def widths(block: int) -> tuple[int, ...]:
        count = shapes.count_layers(f"blocks.{block}.")
        return tuple(shapes.weight_shape(f"blocks.{block}.{i}.0")[0] for i in range(count))

    blocks = range(shapes.count_layers("blocks."))
    return VggConfig(shapes.weight_shape("classifier", 2)[0], tuple(map(widths, blocks)))


def _efficientnet_of(shapes: CheckpointShapes) -> EfficientNetConfig:
    stages = []
    stem = before = shapes.weight_shape("stem.0")[0]
    for i in range(shapes.count_layers("stages.")):
        block = f"stages.{i}.0"
        inner, _, kernel, _ = shapes.weight_shape(f"{block}.depthwise.0")
        channels = shapes.weight_shape(f"{block}.project.0")[0]
        resize = f"{block}.pool.alpha" in shapes.shapes
        stages.append(Stage(channels, shapes.count_layers(f"stages.{i}."), kernel, max(inner // before, 1), resize))
        before = channels
    classes, last = shapes.weight_shape("classifier", 2)
    return EfficientNetConfig(classes, tuple(stages), stem, last)


def _hrnet_of(shapes: CheckpointShapes) -> HrNetConfig:
    width, stem = shapes.weight_shape("transition1.0.0")[0], shapes.weight_shape("conv1.0")[0]
    modules = tuple(shapes.count_layers(f"stage{i}.") for i in (2, 3, 4))
    return HrNetConfig(shapes.weight_shape("head.1")[0], width, modules, stem)


SIGNATURES: dict[Callable[[CheckpointShapes], Config], frozenset[str]] = {
    _vgg_of: frozenset({"pools.0.alpha", "blocks.0.0.0.weight"}),
    _efficientnet_of: frozenset({"stem.0.weight", "stages.0.0.depthwise.0.weight"}),
    _hrnet_of: frozenset({"pool1.alpha", "transition1.0.0.weight"}),
}
"""What reads a network's configuration -> keys of its checkpoints."""


class DynOPoolFamily(Family[Config]):
    """The three networks, by our keys."""

    name = "DynOPool"
    variants = VARIANTS

    def shapes_of(self, checkpoint: Checkpoint) -> CheckpointShapes | None:
        """None unless it has ratios and the keys of one of the networks."""
        keys = checkpoint.state_dict.keys()
        known = any(signature <= keys for signature in SIGNATURES.values())
        if not known or not any(key.endswith(".alpha") for key in keys):
            return None
        return CheckpointShapes(checkpoint, self.name, MAX_COUNT)

    def config_of(self, shapes: CheckpointShapes) -> Config:
        return next(read(shapes) for read, signature in SIGNATURES.items() if signature <= shapes.shapes.keys())

    def network(self, config: Config) -> nn.Module:
        if isinstance(config, VggConfig):
            return Vgg(config.widths, config.num_classes)
        if isinstance(config, EfficientNetConfig):
            return EfficientNet(config.stages, config.num_classes, config.stem, config.last)
        return HrNet(config.width, config.num_classes, config.modules, config.stem)

    def spec(self, config: Config, names: tuple[str, ...] | None) -> ModelSpec:
        count = config.num_classes
        classes = names if names and len(names) == count else tuple(f"class {i}" for i in range(count))
        if isinstance(config, HrNetConfig):
            if not names and count == len(VOC_CLASSES):
                classes = VOC_CLASSES
            return ModelSpec("segment", imagenet_input(512, Fit(stride=1)), DenseOutput(name="logits"), classes)
        if isinstance(config, EfficientNetConfig):
            return classifier_spec(imagenet_input(224, Fit(kind="crop", stride=1)), classes)
        fit = Fit(kind="crop", stride=1, crop_share=1.0)
        return classifier_spec(InputSpec(size=(32, 32), mean=CIFAR_MEAN, std=CIFAR_STD, fit=fit), classes)

    def assumed(self, config: Config, shapes: CheckpointShapes) -> tuple[str, ...]:
        return ()  # the keys are this project's own, and mean this network

    def name_of(self, config: Config) -> str:
        kind = {VggConfig: "vgg16", EfficientNetConfig: "efficientnet", HrNetConfig: "hrnet"}[type(config)]
        return self.variant_of(config) or f"dynopool-{kind}-narrow"

    def loaded(self, config: Config, network: nn.Module, shapes: CheckpointShapes) -> ReferenceModel:
        """The model.

        Raises:
            CheckpointError: it has ratios that no network has.
        """
        for key, module in network.named_modules():
            alpha = module.alpha.detach() if isinstance(module, DynOPool) else torch.ones(2)
            if not ((alpha >= 1 / LARGEST).all() and (alpha <= 1 / SMALLEST).all()):
                raise CheckpointError(
                    f"{shapes.checkpoint.path}: {key}.alpha is {alpha.tolist()}, expected two values of {1 / LARGEST:g}"
                    f" to {1 / SMALLEST:g} (ratios of {LARGEST:g} down to {SMALLEST:g}): it is of another network"
                )
        return super().loaded(config, network, shapes)


FAMILY = DynOPoolFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
