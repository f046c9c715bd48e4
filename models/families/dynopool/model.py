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

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD, VOC_CLASSES
from deploykit.models.families.dynopool.hrnet import HrNet, conv_bn
from deploykit.models.families.dynopool.mbconv import MBConv
from deploykit.models.families.dynopool.resize import DynOPool, complexity
from deploykit.models.loading.shapes import Shapes
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_model
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

FAMILY = "DynOPool"
WEIGHTS_LICENCE = "none were published"

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
SMALLEST, LARGEST = 1 / 64, 4.0  # ratios; a checkpoint with others would ask for maps that nothing holds
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
        """The resizings between the picture and a layer, by its name."""
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
        """The resizings between the picture and a layer, by its name."""
        parts = name.split(".")
        last = {"stem": -1, "stages": int(parts[1]) if parts[0] == "stages" else 0}.get(parts[0], len(self.stages) - 1)
        return tuple(m for stage in self.stages[: last + 1] for m in stage.modules() if isinstance(m, DynOPool))


def layer_macs(network: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Multiply-adds of each convolution and linear layer for a picture of ``size`` (height, width), by name."""
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
    """The term that is added to a loss so that maps stay small: the network's 10^9 multiply-adds for a picture of
    ``size``, with a gradient for every ratio."""
    macs = layer_macs(network, size)
    return complexity((count, network.pools_before(name)) for name, count in macs.items())


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build one of the networks from the tensors of a checkpoint; None: it is of another family.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.state_dict.items()}
    kinds = {
        "vgg16": ("pools.0.alpha", "blocks.0.0.0.weight"),
        "efficientnet-b0": ("stem.0.weight", "stages.0.0.depthwise.0.weight"),
        "hrnet-w48": ("pool1.alpha", "transition1.0.0.weight"),
    }
    kind = next((kind for kind, keys in kinds.items() if shapes.keys() >= set(keys)), None)
    if kind is None or not any(key.endswith(".alpha") for key in shapes):
        return None
    reader = Shapes(checkpoint, "DynOPool", MAX_COUNT)
    with torch.device("meta"):
        network, known = {"vgg16": _vgg_of, "efficientnet-b0": _efficientnet_of, "hrnet-w48": _hrnet_of}[kind](reader)
    found = checkpoint.float32()
    load_weights(network, checkpoint, found, f"DynOPool {kind}")
    for key, alpha in found.items():
        if key.endswith(".alpha") and not ((alpha >= 1 / LARGEST).all() and (alpha <= 1 / SMALLEST).all()):
            raise CheckpointError(
                f"{checkpoint.path}: {key} is {alpha.tolist()}, expected two values of {1 / LARGEST:g} to "
                f"{1 / SMALLEST:g} (ratios of {LARGEST:g} down to {SMALLEST:g}): the file is damaged"
            )
    name = f"dynopool-{kind}" if known else f"dynopool-{kind.partition('-')[0]}-narrow"
    return _reference(kind, name, network.eval(), checkpoint.names)


def _vgg_of(reader: Shapes) -> tuple[nn.Module, bool]:
    def blocks() -> Iterator[tuple[int, ...]]:
        for i in range(reader.count("blocks.")):
            yield tuple(reader.weight(f"blocks.{i}.{j}.0")[0] for j in range(reader.count(f"blocks.{i}.")))

    widths = tuple(blocks())
    return Vgg(widths, reader.weight("classifier", 2)[0]), widths == VGG16


def _efficientnet_of(reader: Shapes) -> tuple[nn.Module, bool]:
    stages = []
    stem = before = reader.weight("stem.0")[0]
    for i in range(reader.count("stages.")):
        block = f"stages.{i}.0"
        inner, _, kernel, _ = reader.weight(f"{block}.depthwise.0")
        channels = reader.weight(f"{block}.project.0")[0]
        resize = f"{block}.pool.alpha" in reader.shapes
        stages.append(Stage(channels, reader.count(f"stages.{i}."), kernel, max(inner // before, 1), resize))
        before = channels
    classes, last = reader.weight("classifier", 2)
    return EfficientNet(tuple(stages), classes, stem, last), (tuple(stages), stem, last) == (B0, 32, 1280)


def _hrnet_of(reader: Shapes) -> tuple[nn.Module, bool]:
    width, stem = reader.weight("transition1.0.0")[0], reader.weight("conv1.0")[0]
    modules = tuple(reader.count(f"stage{i}.") for i in (2, 3, 4))
    return HrNet(width, reader.weight("head.1")[0], modules, stem), (width, stem, modules) == (48, 64, (1, 4, 3))


def _reference(kind: str, name: str, network: nn.Module, names: tuple[str, ...] | None = None) -> ReferenceModel:
    last = network.head[1] if isinstance(network, HrNet) else network.classifier
    assert isinstance(last, (nn.Conv2d, nn.Linear))
    count = last.weight.shape[0]
    classes = names if names and len(names) == count else tuple(f"class {i}" for i in range(count))
    if kind == "hrnet-w48":
        if not names and count == len(VOC_CLASSES):
            classes = VOC_CLASSES
        canvas = InputSpec(size=(512, 512), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit=Fit(stride=1))
    elif kind == "vgg16":
        fit = Fit(kind="crop", stride=1, crop_share=1.0)
        canvas = InputSpec(size=(32, 32), mean=CIFAR_MEAN, std=CIFAR_STD, fit=fit)
    else:
        canvas = InputSpec(size=(224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit=Fit(kind="crop", stride=1))
    spec = ModelSpec("segment" if kind == "hrnet-w48" else "classify", canvas, DenseOutput(name="logits"), classes)
    return ReferenceModel(name, FAMILY, network, spec)


@register_model
def dynopool_vgg16(*, num_classes: int | None = None) -> ReferenceModel:
    """VGG16 with batch norm for pictures of 32 pixels, CIFAR-100."""
    return _reference("vgg16", "dynopool-vgg16", Vgg(VGG16, num_classes or 100).eval())


@register_model
def dynopool_efficientnet_b0(*, num_classes: int | None = None) -> ReferenceModel:
    """EfficientNet-B0, ImageNet."""
    network = EfficientNet(B0, num_classes or 1000).eval()
    return _reference("efficientnet-b0", "dynopool-efficientnet-b0", network)


@register_model
def dynopool_hrnet_w48(*, num_classes: int | None = None) -> ReferenceModel:
    """HRNet-W48 for segmentation, PASCAL VOC."""
    network = HrNet(48, num_classes or len(VOC_CLASSES)).eval()
    return _reference("hrnet-w48", "dynopool-hrnet-w48", network)
