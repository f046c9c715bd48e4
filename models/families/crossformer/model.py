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
from deploykit.models.class_names import class_names
from deploykit.models.families.crossformer.layers import CrossBlock, CrossEmbed, Merging
from deploykit.models.family import Family, classifier_spec, imagenet_input
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.spec import Fit, ModelSpec

WEIGHTS_LICENCE = "MIT (cheerss/CrossFormer)"

SIZE, STRIDE = 224, 32
GROUPS, INTERVALS = (7, 7, 7, 7), (8, 4, 2, 1)
DETECTION = (14, 14, 7, 7), (16, 8, 2, 1)
"""Groups and intervals that the paper tries for detection and segmentation, whose images are larger."""

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
            raise UsageError(f"{name} are {len(config.depths)} positive numbers, one per stage, got {values}")
    with torch.device("meta"):
        backbone = CrossFormerBackbone(config)
    own = backbone.state_dict().keys()
    backbone.load_state_dict({key: value for key, value in network.state_dict().items() if key in own}, assign=True)
    return backbone.train(network.training)


class CrossFormerFamily(Family[CrossFormerConfig]):
    """CrossFormer by the original's keys; groups and intervals are the published ones."""

    name = "CrossFormer"
    variants = VARIANTS
    signature = frozenset({"patch_embed.projs.0.weight", "layers.0.blocks.0.attn.qkv.weight"})
    fixed_size_reason = "the groups of its attentions and their padding"

    def config_of(self, shapes: CheckpointShapes) -> CrossFormerConfig:
        path, stages = shapes.checkpoint.path, range(len(GROUPS))
        others = [key for key in shapes.shapes if re.search(r"ex_conv|norm_cpe|absolute_pos_embed", key)]
        if others:
            raise CheckpointError(f"{path} is of CrossFormer++ or a variant ({others[0]}), which is not built")
        if shapes.count_layers("layers.") != len(GROUPS):
            raise CheckpointError(
                f"{path} has {shapes.count_layers('layers.')} stages, expected the four of a CrossFormer"
            )
        dim = shapes.weight_shape("patch_embed.norm", 1)[0]
        heads = tuple(shapes.weight_shape(f"layers.{i}.blocks.0.attn.pos.pos3.2", 2)[0] for i in stages)
        for i, count in enumerate(heads):
            if (dim << i) % count:  # no other tensor's shape tells, so it would fail as late as in the first image
                raise CheckpointError(
                    f"{path}: layers.{i}.blocks.0.attn.pos.pos3.2.weight has {count} rows, one per head, expected a "
                    f"divisor of the stage's {dim << i} channels: it is of a changed model (deploykit inspect shows it)"
                )
        hidden, width = shapes.weight_shape("layers.0.blocks.0.mlp.fc1", 2)
        return CrossFormerConfig(
            dim=dim,
            depths=tuple(shapes.count_layers(f"layers.{i}.blocks.") for i in stages),
            heads=heads,
            num_classes=shapes.weight_shape("head", 2)[0],
            ratio=max(hidden // width, 1),
        )

    def network(self, config: CrossFormerConfig) -> CrossFormer:
        return CrossFormer(config)

    def spec(self, config: CrossFormerConfig, names: tuple[str, ...] | None) -> ModelSpec:
        fit = Fit(kind="crop", stride=STRIDE, resample="bicubic")
        return classifier_spec(imagenet_input(SIZE, fit), class_names(config.num_classes, names))

    def name_of(self, config: CrossFormerConfig) -> str:
        return self.variant_of(config) or f"crossformer-d{config.dim}-{'-'.join(map(str, config.depths))}"

    def tensors_of(self, shapes: CheckpointShapes, network: nn.Module) -> dict[str, Tensor]:
        """The tensors without the buffers of older files."""
        tensors = super().tensors_of(shapes, network)
        return {key: value for key, value in tensors.items() if not BUFFERS.search(key)}

    def assumed(self, config: CrossFormerConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        return (
            f"groups of {config.groups[0]} and intervals {', '.join(map(str, config.intervals))}, as published for "
            "classification: no tensor tells",
            "GELU and layer norms with an eps of 1e-05, as CrossFormer has them: no tensor tells",
        )


FAMILY = CrossFormerFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
