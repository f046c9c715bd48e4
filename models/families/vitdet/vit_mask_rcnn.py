"""Mask R-CNN on a plain vision transformer, of before ViTDet: four maps of one size, brought to an FPN's levels.

Original: "Benchmarking Detection Transfer Learning with Vision Transformers", arXiv 2111.11429. No code or weights of
it are published: the layer graph is the paper's, the names of tensors are ours (those of ViTDet where the parts are
the same), so that only files of one's own training, or of ``deploykit create``, can be read.

What the paper leaves open, and is taken here: group norms of 32 groups between the transposed convolutions, batch norms
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
from deploykit.models.families.vitdet import model as vitdet
from deploykit.models.families.vitdet.mask_rcnn import HeadsConfig, MaskRcnn, with_thresholds
from deploykit.models.families.vitdet.model import VitDetConfig, positions_of
from deploykit.models.families.vitdet.pyramid import TapPyramid
from deploykit.models.families.vitdet.shared_bias import SharedBiasBlock
from deploykit.models.loading.shapes import Shapes
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_model

__all__ = ["TapBackbone", "TappedTransformer"]

FAMILY = "ViT Mask R-CNN"
WEIGHTS_LICENCE = "none published"

SIZES = {
    size: replace(config, whole=tuple(config.depth // 4 * (i + 1) - 1 for i in range(4)))
    for size, config in vitdet.VARIANTS.items()
    if size in ("b", "l")
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
            SharedBiasBlock(dim, config.heads, config.hidden, 0 if i in config.whole else config.window)
            for i in range(config.depth)
        )
        for name, cells in (("rel_window", config.window), ("rel_whole", config.cells)):
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

    def random_weights(self) -> None:
        """Positions that matter."""
        for parameter in (self.pos_embed, self.get_parameter("rel_window"), self.get_parameter("rel_whole")):
            nn.init.normal_(parameter, std=0.5)


class TapBackbone(TapPyramid):
    """``(B, C, H, W)`` to P2 to P6, as :class:`deploykit.models.families.vitdet.model.VitDetBackbone` gives them."""

    def __init__(self, config: VitDetConfig) -> None:
        super().__init__(config.dim, config.out, math.gcd(32, config.dim))
        self.net = TappedTransformer(config)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]  # pictures, not maps
        return super().forward(self.net(images))


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build a ViT Mask R-CNN from the tensors of a checkpoint; None: it is of another family.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    keys = checkpoint.state_dict.keys()
    if not {"backbone.net.rel_window", "backbone.fpn_lateral2.weight"} <= keys:
        return None
    reader = Shapes(checkpoint, FAMILY)
    net = "backbone.net"
    heads, window, _ = reader.of(f"{net}.rel_window", 3)
    dim, channels, patch, _ = reader.weight(f"{net}.patch_embed.proj")
    depth = reader.count(f"{net}.blocks.")
    pretrained = math.isqrt(reader.of(f"{net}.pos_embed", 3)[1] - 1)
    if dim % heads or depth % 4 or pretrained < 1:
        raise CheckpointError(
            f"{checkpoint.path}: {dim} channels, {heads} heads, {depth} blocks and its positions are not of a {FAMILY}"
        )
    config = VitDetConfig(
        dim,
        depth,
        heads,
        reader.weight(f"{net}.blocks.0.mlp.fc1", 2)[0],
        whole=tuple(depth // 4 * (i + 1) - 1 for i in range(4)),
        patch=patch,
        cells=(reader.of(f"{net}.rel_whole", 3)[1] + 1) // 2,
        pretrained=pretrained,
        window=(window + 1) // 2,
        out=reader.weight("backbone.fpn_lateral2")[0],
        channels=channels,
        norm="BN",
    )
    settings = vitdet.heads_of(checkpoint, {key: key for key in keys}, config)
    with torch.device("meta"):
        network = MaskRcnn(TapBackbone(config), settings)
    name = _name_of(config)
    load_weights(network, checkpoint, checkpoint.float32(), name)
    network = with_thresholds(network, network.thresholds)  # which have no values on the meta device
    return _reference(config, network.eval(), checkpoint.names)


def _name_of(config: VitDetConfig) -> str:
    size = next((k for k, v in SIZES.items() if (v.dim, v.depth) == (config.dim, config.depth)), None)
    return f"vit-mask-rcnn-{size or f'd{config.dim}-{config.depth}'}"


def _reference(config: VitDetConfig, network: MaskRcnn, names: tuple[str, ...] | None = None) -> ReferenceModel:
    model = vitdet._reference(config, network.config, network, names)
    return replace(model, name=_name_of(config), family=FAMILY, rewrites={})


def _build(size: str, num_classes: int | None) -> ReferenceModel:
    heads = HeadsConfig(num_classes=num_classes or 80, norm="BN")
    config = replace(SIZES[size], norm="BN")
    return _reference(config, MaskRcnn(TapBackbone(config), heads).eval())


@register_model
def vit_mask_rcnn_b(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-B with an FPN of four of its maps and Mask R-CNN; COCO's 80 classes, 1024 px."""
    return _build("b", num_classes)


@register_model
def vit_mask_rcnn_l(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-L with an FPN of four of its maps and Mask R-CNN; COCO's 80 classes, 1024 px."""
    return _build("l", num_classes)
