"""CMT as FlyEgle/CMT-pytorch builds it from the paper's first version: another network than the authors' own.

Its layout, keys and numbers (of a project without a licence, arXiv 2107.06263) are facts taken over, the code is ours.
State dicts load unchanged. ``(B, 3, H, W)`` becomes logits ``(B, classes)``; H and W are multiples of 32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD, class_names
from deploykit.models.families.cmt.flyegle_layers import ConvGeluBN, FlyegleBlock
from deploykit.models.loading.shapes import Shapes
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_model
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

FAMILY = "CMT of FlyEgle"
WEIGHTS_LICENCE = "none is given (FlyEgle/CMT-pytorch)"

HEADS, REDUCTIONS = (1, 2, 4, 8), (8, 4, 2, 1)
STRIDE = 32
MAX_SIDE = 128  # cells of the first stage's map that a table is read for


@dataclass(frozen=True)
class FlyegleConfig:
    """A layer graph: ``size`` is the picture's side that the tables are of, ``hidden`` channels inside of a block."""

    size: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    hidden: tuple[int, ...]
    stem: int = 16
    features: int = 1280
    num_classes: int = 1000
    biased: bool = True


def _known(size: int, dim: int, depths: tuple[int, ...], ratio: float, stem: int) -> FlyegleConfig:
    dims = tuple(dim << i for i in range(4))
    return FlyegleConfig(size, dims, depths, tuple(int(ratio * d) for d in dims), stem)


VARIANTS = {
    "cmt_flyegle_ti": _known(160, 46, (2, 2, 10, 2), 3.6, 16),
    "cmt_flyegle_xs": _known(192, 52, (3, 3, 12, 3), 3.8, 16),
    "cmt_flyegle_s": _known(224, 64, (3, 3, 16, 3), 4.0, 32),
    "cmt_flyegle_b": _known(256, 76, (4, 4, 20, 4), 4.0, 38),
}


class Stem(nn.Module):
    """Half the size by the first of three convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv3x3_gelu_bn_downsample = ConvGeluBN(3, width, 3, 2)
        self.conv3x3_gelu_bn_list = nn.Sequential(*(ConvGeluBN(width, width, 3) for _ in range(2)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3x3_gelu_bn_list(self.conv3x3_gelu_bn_downsample(x))
        return out


class Aggregation(nn.Module):
    """Half the size and another width."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.patch_aggregation = nn.Conv2d(channels, dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.patch_aggregation(x)
        return out


class Stage(nn.Module):
    """Blocks of one size."""

    def __init__(self, config: FlyegleConfig, i: int) -> None:
        super().__init__()
        side = config.size // 4 >> i
        block = (config.dims[i], HEADS[i], config.hidden[i], REDUCTIONS[i], side)
        self.block_list = nn.Sequential(*(FlyegleBlock(*block, biased=config.biased) for _ in range(config.depths[i])))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_list(x)
        return out


class FlyegleCmt(nn.Module):
    """``(B, 3, H, W)`` to logits ``(B, classes)``; the sides are multiples of 32."""

    def __init__(self, config: FlyegleConfig) -> None:
        super().__init__()
        self.stem = Stem(config.stem)
        channels = config.stem
        for i, dim in enumerate(config.dims):
            self.add_module(f"pool{i + 1}", Aggregation(channels, dim))
            self.add_module(f"stage{i + 1}", Stage(config, i))
            channels = dim
        self.fc = nn.Linear(channels, config.features)
        self.classifier = nn.Linear(config.features, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for i in range(1, 5):
            x = self.get_submodule(f"stage{i}")(self.get_submodule(f"pool{i}")(x))
        out: Tensor = self.classifier(self.fc(x.mean((2, 3))))
        return out

    def random_weights(self) -> None:
        """Positions that matter, so that lost ones show."""
        for name, parameter in self.named_parameters():
            if name.endswith("position_embeeding"):
                nn.init.normal_(parameter, std=0.5)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build the network from the tensors of a checkpoint; None: it is of another family.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    if "stage1.block_list.0.LMHSA.kv.weight" not in checkpoint.state_dict:
        return None
    config = _config_of(checkpoint)
    with torch.device("meta"):
        network = FlyegleCmt(config)
    name = _name_of(config)
    load_weights(network, checkpoint, checkpoint.float32(), name)
    return _reference(name, config, network.eval(), checkpoint.names)


def _config_of(checkpoint: Checkpoint) -> FlyegleConfig:
    reader = Shapes(checkpoint, FAMILY)
    table = reader.of("stage1.block_list.0.LMHSA.position_embeeding", 2)
    side = (table[0] + 1) // 2
    if table != (2 * side - 1, 2 * side - 1) or side % 8 or side > MAX_SIDE:
        raise CheckpointError(
            f"{checkpoint.path}: the first table of positions is {list(table)}, expected 2 n - 1 of each for maps of n "
            f"cells a side, n a multiple of 8 and at most {MAX_SIDE}"
        )
    stages = range(1, 5)
    dims = tuple(reader.weight(f"pool{i}.patch_aggregation")[0] for i in stages)
    if any(dim % heads for dim, heads in zip(dims, HEADS, strict=True)):
        raise CheckpointError(f"{checkpoint.path}: stages of {dims} channels are not shared by {HEADS} heads")
    return FlyegleConfig(
        size=4 * side,
        dims=dims,
        depths=tuple(reader.count(f"stage{i}.block_list.") for i in stages),
        hidden=tuple(reader.weight(f"stage{i}.block_list.0.IRFFN.conv3x3_dw.conv")[0] for i in stages),
        stem=reader.weight("pool1.patch_aggregation")[1],
        features=reader.weight("fc", 2)[0],
        num_classes=reader.weight("classifier", 2)[0],
        biased="stage1.block_list.0.LMHSA.q.bias" in reader.shapes,
    )


def _name_of(config: FlyegleConfig) -> str:
    for name, known in VARIANTS.items():
        if replace(config, num_classes=0, size=0) == replace(known, num_classes=0, size=0):
            return name.replace("_", "-") + (f"-{config.size}" if config.size != known.size else "")
    return f"cmt-flyegle-d{config.dims[0]}-{'-'.join(map(str, config.depths))}"


def _reference(
    name: str, config: FlyegleConfig, network: FlyegleCmt, names: tuple[str, ...] | None = None
) -> ReferenceModel:
    fit = Fit(kind="crop", stride=STRIDE, crop_share=0.875, resample="bilinear")
    canvas = InputSpec(size=(config.size, config.size), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit=fit)
    spec = ModelSpec("classify", canvas, DenseOutput(name="logits"), class_names(config.num_classes, names))
    return ReferenceModel(name, FAMILY, network, spec)


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    config = replace(VARIANTS[name], num_classes=1000 if num_classes is None else num_classes)
    return _reference(name.replace("_", "-"), config, FlyegleCmt(config).eval())


@register_model
def cmt_flyegle_ti(*, num_classes: int | None = None) -> ReferenceModel:
    """The Ti of FlyEgle/CMT-pytorch, 160x160, ImageNet."""
    return _build("cmt_flyegle_ti", num_classes)


@register_model
def cmt_flyegle_xs(*, num_classes: int | None = None) -> ReferenceModel:
    """The XS of FlyEgle/CMT-pytorch, 192x192, ImageNet."""
    return _build("cmt_flyegle_xs", num_classes)


@register_model
def cmt_flyegle_s(*, num_classes: int | None = None) -> ReferenceModel:
    """The S of FlyEgle/CMT-pytorch, 224x224, ImageNet."""
    return _build("cmt_flyegle_s", num_classes)


@register_model
def cmt_flyegle_b(*, num_classes: int | None = None) -> ReferenceModel:
    """The B of FlyEgle/CMT-pytorch, 256x256, ImageNet."""
    return _build("cmt_flyegle_b", num_classes)
