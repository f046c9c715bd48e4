"""ViT Mask R-CNN, the predecessor of ViTDet: four maps of a plain vision transformer become an FPN's levels.

Original: "Benchmarking Detection Transfer Learning with Vision Transformers", arXiv 2111.11429. No code or weights of
it are published: the layer graph is the paper's, the names of tensors are ours (those of ViTDet where the parts are
the same), so that only files of one's own training, or of ``deploykit create``, can be read.

The paper leaves open, and we chose: group norms of 32 groups between the transposed convolutions, batch norms
behind each convolution of the FPN and of the heads (eps 1e-5), windows padded and not masked, as in ViTDet.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.vit import PatchEmbed
from deploykit.models.families.vitdet.mask_rcnn import HeadsConfig, MaskRcnn
from deploykit.models.families.vitdet.model import (
    BACKBONES,
    DetectorConfig,
    MaskRcnnFamily,
    VitDetConfig,
    positions_of,
)
from deploykit.models.families.vitdet.pyramid import TapPyramid
from deploykit.models.families.vitdet.shared_bias import SharedBiasBlock
from deploykit.models.loading.shapes import CheckpointShapes

__all__ = ["TapBackbone", "TappedTransformer"]

WEIGHTS_LICENCE = "none published"


def _quarters(depth: int) -> tuple[int, ...]:
    return tuple(depth // 4 * (i + 1) - 1 for i in range(4))


VARIANTS = {
    f"vit_mask_rcnn_{size}": DetectorConfig(
        replace(BACKBONES[size], global_blocks=_quarters(BACKBONES[size].depth), norm="BN"), HeadsConfig(norm="BN")
    )
    for size in ("b", "l")
}


class TappedTransformer(nn.Module):
    """``(B, C, H, W)`` to the maps behind each quarter of the blocks, ``(B, dim, H / patch, W / patch)`` each."""

    def __init__(self, config: VitDetConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embed = PatchEmbed(config.channels, dim, config.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.pretrained**2 + 1, dim))
        self.blocks = nn.ModuleList(
            SharedBiasBlock(dim, config.heads, config.hidden, 0 if i in config.global_blocks else config.window)
            for i in range(config.depth)
        )
        for name, cells in (("rel_window", config.window), ("rel_whole", config.map_size)):
            setattr(self, name, nn.Parameter(torch.zeros(config.heads, 2 * cells - 1, 2 * cells - 1)))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(images).permute(0, 2, 3, 1)
        x = x + positions_of(self.pos_embed, *x.shape[1:3])
        maps = []
        for i, block in enumerate(self.blocks, start=1):
            x = block(x, self.rel_window if block.window else self.rel_whole)
            if i % (len(self.blocks) // 4) == 0:
                maps.append(x.permute(0, 3, 1, 2))
        return tuple(maps[:4])

    def random_weights(self, gain: float) -> None:
        """Positions that matter, so that lost ones show."""
        for parameter in (self.pos_embed, self.get_parameter("rel_window"), self.get_parameter("rel_whole")):
            nn.init.normal_(parameter, std=0.5)


class TapBackbone(TapPyramid):
    """``(B, C, H, W)`` to P2 to P6, as :class:`deploykit.models.families.vitdet.model.VitDetBackbone` gives them."""

    def __init__(self, config: VitDetConfig) -> None:
        super().__init__(config.dim, config.out, math.gcd(32, config.dim))
        self.net = TappedTransformer(config)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # images, not maps
        return super().forward(self.net(images))


class VitMaskRcnnFamily(MaskRcnnFamily):
    """ViT Mask R-CNN, by our keys."""

    name = "ViT Mask R-CNN"
    variants = VARIANTS

    def shapes_of(self, checkpoint: Checkpoint) -> CheckpointShapes | None:
        """The shapes, under the network's own names."""
        keys = checkpoint.state_dict.keys()
        if not {"backbone.net.rel_window", "backbone.fpn_lateral2.weight"} <= keys:
            return None
        return CheckpointShapes(checkpoint, self.name, key_map={key: key for key in keys})

    def config_of(self, shapes: CheckpointShapes) -> DetectorConfig:
        net = "backbone.net"
        heads, window, _ = shapes.shape(f"{net}.rel_window", 3)
        dim, channels, patch, _ = shapes.weight_shape(f"{net}.patch_embed.proj")
        depth = shapes.count_layers(f"{net}.blocks.")
        pretrained = math.isqrt(shapes.shape(f"{net}.pos_embed", 3)[1] - 1)
        if dim % heads or depth % 4 or pretrained < 1:
            raise CheckpointError(
                f"{shapes.checkpoint.path}: {dim} channels, {heads} heads, {depth} blocks and its positions are not "
                f"those of a {self.name}"
            )
        backbone = VitDetConfig(
            dim,
            depth,
            heads,
            shapes.weight_shape(f"{net}.blocks.0.mlp.fc1", 2)[0],
            global_blocks=_quarters(depth),
            patch=patch,
            map_size=(shapes.shape(f"{net}.rel_whole", 3)[1] + 1) // 2,
            pretrained=pretrained,
            window=(window + 1) // 2,
            out=shapes.weight_shape("backbone.fpn_lateral2")[0],
            channels=channels,
            norm="BN",
        )
        return DetectorConfig(backbone, self.heads_of(shapes, backbone))

    def network(self, config: DetectorConfig) -> MaskRcnn:
        return MaskRcnn(TapBackbone(config.backbone), config.heads)

    def assumed(self, config: DetectorConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        return ()  # the keys are this project's own, and mean this network

    def name_of(self, config: DetectorConfig) -> str:
        own = config.backbone
        size = next((k for k in ("b", "l") if (BACKBONES[k].dim, BACKBONES[k].depth) == (own.dim, own.depth)), None)
        return f"vit-mask-rcnn-{size or f'd{own.dim}-{own.depth}'}"


FAMILY = VitMaskRcnnFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
