"""Vision transformers for classification, and MAE's in all their layouts: fine-tuned, linear probe, pretrained.

Originals: ViT arXiv 2010.11929, in the keys of timm (Apache-2.0); MAE arXiv 2111.06377, facebookresearch/mae
(CC-BY-NC-4.0, the code and the weights). Layouts, keys and numbers are facts taken over, the code is ours.

``(B, C, H, W)`` becomes logits ``(B, classes)``, or features ``(B, dim)`` where a checkpoint has no head. Position
embeddings are interpolated bicubically to other sizes, as in MAE; an export for a fixed size does it once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.class_names import class_names
from deploykit.models.family import Family, classifier_spec, imagenet_input
from deploykit.models.fuse import check_fold, shared_copy
from deploykit.models.layers.attention import EPS, TransformerBlock
from deploykit.models.layers.norm import randomise_affine
from deploykit.models.loading.file_facts import chosen, count_told
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.models.registry import ReferenceModel
from deploykit.spec import DenseOutput, Fit, ModelSpec

WEIGHTS_LICENCE = "CC-BY-NC-4.0 (MAE, the code too); of other ViTs their own"

HEADS = {192: 3, 384: 6, 512: 8, 640: 10, 768: 12, 896: 14, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Number of heads by width, as most published ones have it; no tensor tells it."""

ALSO = {192: "MAE-Lite's has 12", 384: "MoCo v3's has 12"}
"""Published ones with another number of heads."""

OTHERS = ("blocks.0.ls1.gamma", "blocks.0.gamma_1", "blocks.0.attn.q_norm.weight", "blocks.0.attn.q_bias")
"""Tensors of transformers that compute something else: scaled branches, normalised queries, biases apart."""

Head = Literal["mean", "token", "probe", "features"]
"""What is classified: ``mean`` of the patches (fine-tuned MAE), the class ``token``, the same after a batch norm
(linear ``probe``); or nothing, and the mean of the normalised patches comes out as ``features``."""


@dataclass(frozen=True)
class VitConfig:
    """A layer graph: tokens of ``dim`` channels from patches of ``patch`` pixels on a grid of ``grid`` a side."""

    dim: int
    depth: int
    heads: int
    hidden: int
    patch: int = 16
    grid: int = 14
    channels: int = 3
    num_classes: int = 1000
    head: Head = "mean"


BASE = VitConfig(768, 12, 12, 3072)
VARIANTS = {
    "mae_vit_b16": BASE,
    "mae_vit_l16": replace(BASE, dim=1024, depth=24, heads=16, hidden=4096),
    "mae_vit_h14": replace(BASE, dim=1280, depth=32, heads=16, hidden=5120, patch=14, grid=16),
}
"""As MAE fine-tunes them for ImageNet."""


class PatchEmbed(nn.Module):
    """Images as tokens: ``(B, C, H, W)`` to ``(B, dim, H / patch, W / patch)``."""

    def __init__(self, channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.proj(images)
        return out


class ProbeHead(nn.Sequential):
    """MAE's linear probe: a batch norm without parameters and a linear layer, which fold into one layer."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(nn.BatchNorm1d(dim, affine=False, eps=1e-6), nn.Linear(dim, num_classes))

    def fuse(self, path: str) -> nn.Module:
        """The linear layer that computes the same.

        Raises:
            FoldError: it does not.
        """
        norm, linear = self[0], self[1]
        assert isinstance(norm, nn.BatchNorm1d)
        assert isinstance(linear, nn.Linear)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        weight = linear.weight.detach().double() * scale
        bias = linear.bias.detach().double() - weight @ norm.running_mean.double()
        new = shared_copy(linear)
        new.weight = nn.Parameter(weight.to(linear.weight), requires_grad=False)
        new.bias = nn.Parameter(bias.to(linear.bias), requires_grad=False)
        generator = torch.Generator().manual_seed(linear.in_features)
        probe = torch.randn(4, linear.in_features, generator=generator, dtype=torch.float64)
        wide, narrow = shared_copy(self).double().eval(), shared_copy(new).double()
        check_fold(path, "batch norm", wide.forward, narrow, probe)
        return new


class VisionTransformer(nn.Module):
    """``(B, C, H, W)`` to ``(B, classes)``, or to features ``(B, dim)``; H and W are multiples of the patch."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embed = PatchEmbed(config.channels, dim, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, config.heads, config.hidden) for _ in range(config.depth)))
        if config.head == "mean":
            self.fc_norm = nn.LayerNorm(dim, eps=EPS)
        else:
            self.norm = nn.LayerNorm(dim, eps=EPS)
        self.head: nn.Module
        if config.head == "probe":
            self.head = ProbeHead(dim, config.num_classes)
        elif config.head != "features":
            self.head = nn.Linear(dim, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        rows, columns = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2) + self.positions(rows, columns)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(images.shape[0], -1, -1)
        out = self.pooled(self.blocks(torch.cat((first, tokens), 1)))
        if self.config.head != "features":
            out = self.head(out)
        return out

    def pooled(self, tokens: Tensor) -> Tensor:
        """What the head is given: ``(B, 1 + N, dim)`` to ``(B, dim)``."""
        if self.config.head == "mean":  # in this order: normalised is the mean, and not what it is of
            normalised: Tensor = self.fc_norm(tokens[:, 1:].mean(1))
            return normalised
        if self.config.head == "features":
            mean: Tensor = self.norm(tokens[:, 1:]).mean(1)
            return mean
        token: Tensor = self.norm(tokens[:, 0])
        return token

    def positions(self, rows: int, columns: int) -> Tensor:
        """The embeddings of a grid, ``(1, rows * columns, dim)``: those of training, interpolated bicubically."""
        # For the grid of training too, where it changes nothing: while a shape is traced as free, a comparison would
        # decide for all of them. The exporter computes it once for a fixed shape.
        grid = self.config.grid
        planes = self.pos_embed[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        planes = functional.interpolate(planes, size=(rows, columns), mode="bicubic", align_corners=False)
        return planes.flatten(2).transpose(1, 2)

    def random_weights(self, gain: float) -> None:
        """Positions and norms that matter, so that a lost one shows."""
        nn.init.normal_(self.cls_token, std=0.5)
        nn.init.normal_(self.pos_embed, std=0.5)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                randomise_affine(module)


class VitFamily(Family[VitConfig]):
    """Vision transformers by timm's keys, and MAE's; the number of heads is asked for, told by the file, or assumed."""

    name = "ViT"
    variants = VARIANTS
    choices = ("heads",)
    signature = frozenset({"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"})

    def config_of(self, shapes: CheckpointShapes) -> VitConfig:
        path = shapes.checkpoint.path
        others = [key for key in ("dist_token", "reg_token", "norm_pre.weight", *OTHERS) if key in shapes.shapes]
        if others:
            raise CheckpointError(
                f"{path} is of a vision transformer with {others[0]}, which is not one of ViT's or MAE's layouts"
            )
        dim, channels, patch, _ = shapes.weight_shape("patch_embed.proj")
        positions, hidden = shapes.shape("pos_embed", 3)[1], shapes.weight_shape("blocks.0.mlp.fc1", 2)[0]
        grid = math.isqrt(positions - 1)
        if grid**2 + 1 != positions or grid < 1:
            raise CheckpointError(
                f"{path}: pos_embed has {positions} positions, expected those of a square and one for the class token"
            )
        kind: Head = "features"
        classes = 1
        if "head.1.weight" in shapes.shapes:
            kind, classes = "probe", shapes.weight_shape("head.1", 2)[0]
        elif "head.weight" in shapes.shapes:
            kind, classes = "mean" if "fc_norm.weight" in shapes.shapes else "token", shapes.weight_shape("head", 2)[0]
        heads = _heads(shapes, dim)
        return VitConfig(dim, shapes.count_layers("blocks."), heads, hidden, patch, grid, channels, classes, kind)

    def network(self, config: VitConfig) -> VisionTransformer:
        return VisionTransformer(config)

    def spec(self, config: VitConfig, names: tuple[str, ...] | None) -> ModelSpec:
        fit = Fit(kind="crop", stride=config.patch, resample="bicubic")
        canvas = imagenet_input(config.patch * config.grid, fit, config.channels)
        if config.head == "features":
            return ModelSpec("features", canvas, DenseOutput(name="features"), ())
        return classifier_spec(canvas, class_names(config.num_classes, names))

    def name_of(self, config: VitConfig) -> str:
        known = self.variant_of(replace(config, head="mean"), "grid", "channels")
        size = known.rpartition("-")[2] if known else f"d{config.dim}-{config.depth}-p{config.patch}"
        if config.heads != HEADS.get(config.dim):
            size = f"{size}-h{config.heads}"
        tail = {"probe": "-linear-probe", "features": "-features"}.get(config.head, "")
        return f"{'vit' if config.head == 'token' else 'mae-vit'}-{size}{tail}"

    def tensors_of(self, shapes: CheckpointShapes, network: nn.Module) -> dict[str, Tensor]:
        """The tensors without the decoder of a pretraining checkpoint."""
        return {key: value for key, value in super().tensors_of(shapes, network).items() if not _is_decoder(key)}

    def loaded(self, config: VitConfig, network: nn.Module, shapes: CheckpointShapes) -> ReferenceModel:
        """With notes on what was assumed and what was dropped."""
        dropped = sum(map(_is_decoder, shapes.shapes))
        notes = (f"the decoder of its pretraining is dropped ({dropped} tensors)",) if dropped else ()
        model = replace(super().loaded(config, network, shapes), notes=notes)
        if shapes.checkpoint.loading.heads is None and _told_heads(shapes) is None:
            also = f" ({ALSO[config.dim]})" if config.dim in ALSO else ""
            model = model.assuming(
                f"{config.heads} heads for {config.dim} channels, as published ViTs of that width have{also}: no "
                "tensor tells; choose with --heads"
            )
        return model


def _told_heads(shapes: CheckpointShapes) -> tuple[int, str] | None:
    return count_told(shapes.checkpoint, "num_heads", "n_heads", "num_attention_heads", "heads")


def _heads(shapes: CheckpointShapes, dim: int) -> int:
    """The number of heads: as asked for, as the file tells, or that of published networks of the width."""
    path, told = shapes.checkpoint.path, _told_heads(shapes)
    heads: int | None = chosen(shapes.checkpoint, "heads", shapes.checkpoint.loading.heads, told)
    if heads is None and dim not in HEADS:
        raise CheckpointError(
            f"{path} is of a vision transformer of {dim} channels, and no tensor tells its number of heads: give it "
            f"with --heads; published ones have {', '.join(map(str, HEADS))} channels"
        )
    heads = HEADS[dim] if heads is None else heads
    if heads < 1 or dim % heads:
        if told is not None:
            raise CheckpointError(f"{path}: {told[1]} says {heads} heads, which do not divide its {dim} channels")
        raise UsageError(f"--heads {heads} does not divide the {dim} channels of {path}")
    return heads


def _is_decoder(key: str) -> bool:
    return key == "mask_token" or key.startswith("decoder_")


FAMILY = VitFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
