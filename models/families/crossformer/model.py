"""CrossFormer: attention across scales and distances, for classification and as a backbone.

Original: arXiv 2108.00154; cheerss/CrossFormer (MIT). Layout, keys and numbers are facts taken over, the code is ours.
State dicts load unchanged, of any widths and depths: they are read from the tensors, but for the sizes of the groups
and the intervals, which are in none and are those of the publication.

``(B, 3, H, W)`` becomes logits ``(B, classes)``; H and W are multiples of 32. The biases of attentions are computed by
small networks; an export has their values and not the networks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD, class_names
from deploykit.models.families.crossformer.layers import CrossBlock, CrossEmbed, Merging
from deploykit.models.loading.shapes import Shapes
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_model
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

FAMILY = "CrossFormer"
WEIGHTS_LICENCE = "MIT (cheerss/CrossFormer)"

SIZE, STRIDE = 224, 32
GROUPS, INTERVALS = (7, 7, 7, 7), (8, 4, 2, 1)
DETECTION = (14, 14, 7, 7), (16, 8, 2, 1)
"""Groups and intervals that the paper tries for detection and segmentation, whose pictures are larger."""

BUFFERS = re.compile(r"attn\.(biases|relative_position_index)$|attn_mask$")
"""What older files hold beside the weights."""


@dataclass(frozen=True)
class CrossFormerConfig:
    """A layer graph: widths double from stage to stage; every second block of a stage attends far."""

    dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    num_classes: int = 1000
    groups: tuple[int, ...] = GROUPS
    intervals: tuple[int, ...] = INTERVALS
    ratio: int = 4


VARIANTS = {
    "crossformer_t": CrossFormerConfig(64, (1, 1, 8, 6), (2, 4, 8, 16)),
    "crossformer_s": CrossFormerConfig(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "crossformer_b": CrossFormerConfig(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "crossformer_l": CrossFormerConfig(128, (2, 2, 18, 2), (4, 8, 16, 32)),
}


class Stage(nn.Module):
    """Blocks of one size, and what leads to the next."""

    def __init__(self, config: CrossFormerConfig, i: int) -> None:
        super().__init__()
        dim = config.dim << i
        settings = {"group": config.groups[i], "interval": config.intervals[i]}
        self.blocks = nn.Sequential(
            *(
                CrossBlock(dim, config.heads[i], config.ratio * dim, far=j % 2 == 1, **settings)
                for j in range(config.depths[i])
            )
        )
        self.downsample = Merging(dim) if i + 1 < len(config.depths) else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's own map, and what the next one is given."""
        x = self.blocks(x)
        return x, x if self.downsample is None else self.downsample(x)


class CrossFormerBackbone(nn.Module):
    """``(B, 3, H, W)`` to the maps of the four stages, ``(B, dim << i, H / (4 << i), W / (4 << i))``.

    For detection and segmentation: the weights are the classifier's, without its last norm and its head; groups and
    intervals may be others, because no tensor's shape depends on them.
    """

    def __init__(self, config: CrossFormerConfig) -> None:
        super().__init__()
        self.config = config
        dims = tuple(config.dim >> min(i + 1, 3) for i in range(4))
        self.patch_embed = CrossEmbed(3, dims, (4, 8, 16, 32))
        self.layers = nn.ModuleList(Stage(config, i) for i in range(len(config.depths)))

    def stages(self, images: Tensor) -> list[Tensor]:
        """The maps with their channels last."""
        if images.shape[2] % STRIDE or images.shape[3] % STRIDE:
            raise UsageError(f"a CrossFormer takes sides that are multiples of {STRIDE}, got {list(images.shape[2:])}")
        x, found = self.patch_embed(images), []
        for layer in self.layers:
            own, x = layer(x)
            found.append(own)
        return found

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.permute(0, 3, 1, 2) for x in self.stages(images))


class CrossFormer(CrossFormerBackbone):
    """``(B, 3, H, W)`` to logits ``(B, classes)``."""

    def __init__(self, config: CrossFormerConfig) -> None:
        super().__init__(config)
        dim = config.dim << len(config.depths) - 1
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]  # the head's, instead of the maps
        out: Tensor = self.head(self.norm(self.stages(images)[-1]).mean((1, 2)))
        return out


def backbone_of(
    network: CrossFormer, groups: tuple[int, ...] | None = None, intervals: tuple[int, ...] | None = None
) -> CrossFormerBackbone:
    """The backbone of a classifier, with its weights; ``groups`` and ``intervals`` of its stages may be others.

    Raises:
        UsageError: they are not four positive numbers each.
    """
    config = network.config
    config = replace(config, groups=groups or config.groups, intervals=intervals or config.intervals)
    for name, values in (("groups", config.groups), ("intervals", config.intervals)):
        if len(values) != len(config.depths) or min(values) < 1:
            raise UsageError(f"{name} are {len(config.depths)} positive numbers, one a stage, got {values}")
    with torch.device("meta"):
        backbone = CrossFormerBackbone(config)
    own = backbone.state_dict().keys()
    backbone.load_state_dict({key: value for key, value in network.state_dict().items() if key in own}, assign=True)
    return backbone.train(network.training)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build a CrossFormer from the tensors of a checkpoint; None: it is of another family.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    if not {"patch_embed.projs.0.weight", "layers.0.blocks.0.attn.qkv.weight"} <= checkpoint.state_dict.keys():
        return None
    config = _config_of(checkpoint)
    with torch.device("meta"):
        network = CrossFormer(config)
    name = _name_of(config)
    found = {key: value for key, value in checkpoint.float32().items() if not BUFFERS.search(key)}
    load_weights(network, checkpoint, found, name)
    notes: tuple[str, ...] = ()
    if name.replace("-", "_") not in VARIANTS:
        said = f"groups of {config.groups[0]} and intervals {config.intervals}"
        notes = (f"the groups are in no tensor: the published {said} are taken",)
    return replace(_reference(name, config, network.eval(), checkpoint.names), notes=notes)


def _config_of(checkpoint: Checkpoint) -> CrossFormerConfig:
    reader = Shapes(checkpoint, FAMILY)
    others = [key for key in reader.shapes if re.search(r"ex_conv|norm_cpe|absolute_pos_embed", key)]
    if others:
        raise CheckpointError(f"{checkpoint.path} is of CrossFormer++ or a variant ({others[0]}), which is not built")
    if reader.count("layers.") != len(GROUPS):
        raise CheckpointError(f"{checkpoint.path}: a CrossFormer has four stages, got {reader.count('layers.')}")
    stages = range(len(GROUPS))
    first = "layers.0.blocks.0"
    dim = reader.weight("patch_embed.norm", 1)[0]
    heads = tuple(reader.weight(f"layers.{i}.blocks.0.attn.pos.pos3.2", 2)[0] for i in stages)
    for i, count in enumerate(heads):
        if (dim << i) % count:  # no other tensor's shape tells, so it would fail as late as in the first picture
            raise CheckpointError(
                f"{checkpoint.path}: layers.{i}.blocks.0.attn.pos.pos3.2.weight has {count} rows, one a head, expected "
                f"a divisor of the stage's {dim << i} channels: the file is damaged (deploykit inspect shows it)"
            )
    return CrossFormerConfig(
        dim=dim,
        depths=tuple(reader.count(f"layers.{i}.blocks.") for i in stages),
        heads=heads,
        num_classes=reader.weight("head", 2)[0],
        ratio=max(reader.weight(f"{first}.mlp.fc1", 2)[0] // reader.weight(f"{first}.mlp.fc1", 2)[1], 1),
    )


def _name_of(config: CrossFormerConfig) -> str:
    for name, known in VARIANTS.items():
        if replace(config, num_classes=1000) == known:
            return name.replace("_", "-")
    return f"crossformer-d{config.dim}-{'-'.join(map(str, config.depths))}"


def _reference(
    name: str, config: CrossFormerConfig, network: CrossFormer, names: tuple[str, ...] | None = None
) -> ReferenceModel:
    fit = Fit(kind="crop", stride=STRIDE, resample="bicubic")
    canvas = InputSpec(size=(SIZE, SIZE), mean=IMAGENET_MEAN, std=IMAGENET_STD, fit=fit)
    spec = ModelSpec("classify", canvas, DenseOutput(name="logits"), class_names(config.num_classes, names))
    return ReferenceModel(name, FAMILY, network, spec, fixed_shape="the groups of its attentions and their padding")


def _build(name: str, num_classes: int | None) -> ReferenceModel:
    config = replace(VARIANTS[name], num_classes=1000 if num_classes is None else num_classes)
    return _reference(name.replace("_", "-"), config, CrossFormer(config).eval())


@register_model
def crossformer_t(*, num_classes: int | None = None) -> ReferenceModel:
    """CrossFormer-T, 224x224, ImageNet."""
    return _build("crossformer_t", num_classes)


@register_model
def crossformer_s(*, num_classes: int | None = None) -> ReferenceModel:
    """CrossFormer-S, 224x224, ImageNet."""
    return _build("crossformer_s", num_classes)


@register_model
def crossformer_b(*, num_classes: int | None = None) -> ReferenceModel:
    """CrossFormer-B, 224x224, ImageNet."""
    return _build("crossformer_b", num_classes)


@register_model
def crossformer_l(*, num_classes: int | None = None) -> ReferenceModel:
    """CrossFormer-L, 224x224, ImageNet."""
    return _build("crossformer_l", num_classes)
