"""Vision transformers for classification, and MAE's in all their layouts: fine-tuned, linear probe, pretrained.

Originals: ViT arXiv 2010.11929, in the keys of timm (Apache-2.0); MAE arXiv 2111.06377, facebookresearch/mae
(CC-BY-NC-4.0, the code and the weights). Layouts, keys and numbers are facts taken over, the code is ours.

``(B, C, H, W)`` becomes logits ``(B, classes)``, or features ``(B, dim)`` where a checkpoint has no head. Position
embeddings of another size are interpolated bicubically, as MAE does it; where the input's size is fixed, that is done
once, by the export.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD, class_names
from deploykit.models.fuse import check_fold, shared_copy
from deploykit.models.layers.attention import EPS, TransformerBlock
from deploykit.models.loading.shapes import Shapes
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_model
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

FAMILY = "ViT"
WEIGHTS_LICENCE = "CC-BY-NC-4.0 (MAE, the code too); of other ViTs their own"

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16}
"""Heads by width, as published; no tensor tells them."""

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
SIZES = {
    "b16": BASE,
    "l16": replace(BASE, dim=1024, depth=24, heads=16, hidden=4096),
    "h14": replace(BASE, dim=1280, depth=32, heads=16, hidden=5120, patch=14, grid=16),
}


class PatchEmbed(nn.Module):
    """Pictures as tokens: ``(B, C, H, W)`` to ``(B, dim, H / patch, W / patch)``."""

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
        # decide for all of them. Of a fixed shape the exporter computes it once.
        grid = self.config.grid
        planes = self.pos_embed[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
        planes = functional.interpolate(planes, size=(rows, columns), mode="bicubic", align_corners=False)
        return planes.flatten(2).transpose(1, 2)

    def random_weights(self) -> None:
        """Positions and norms that matter, so that a lost one shows."""
        nn.init.normal_(self.cls_token, std=0.5)
        nn.init.normal_(self.pos_embed, std=0.5)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.normal_(module.bias, std=0.1)


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build a vision transformer from the tensors of a checkpoint; None: it is of another family.

    The decoder of a pretraining checkpoint is dropped.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    keys = checkpoint.state_dict.keys()
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= keys:
        return None
    config, notes = _config_of(checkpoint)
    with torch.device("meta"):
        network = VisionTransformer(config)
    found = checkpoint.float32()
    dropped = [key for key in found if key == "mask_token" or key.startswith("decoder_")]
    for key in dropped:
        del found[key]
    if dropped:
        notes = (*notes, f"the decoder of its pretraining is dropped ({len(dropped)} tensors)")
    name = _name_of(config)
    load_weights(network, checkpoint, found, name)
    return replace(_reference(name, config, network.eval(), checkpoint.names), notes=notes)


def _config_of(checkpoint: Checkpoint) -> tuple[VitConfig, tuple[str, ...]]:
    reader = Shapes(checkpoint, FAMILY)
    others = [key for key in ("dist_token", "reg_token", "norm_pre.weight", *OTHERS) if key in reader.shapes]
    if others:
        raise CheckpointError(
            f"{checkpoint.path} is of a vision transformer with {others[0]}, which is not one of ViT's or MAE's layouts"
        )
    dim, channels, patch, _ = reader.weight("patch_embed.proj")
    positions, hidden = reader.of("pos_embed", 3)[1], reader.weight("blocks.0.mlp.fc1", 2)[0]
    grid = math.isqrt(positions - 1)
    if grid**2 + 1 != positions or grid < 1:
        raise CheckpointError(
            f"{checkpoint.path}: pos_embed has {positions} positions, which are not one and those of a square"
        )
    kind: Head = "features"
    classes = 0
    if "head.1.weight" in reader.shapes:
        kind, classes = "probe", reader.weight("head.1", 2)[0]
    elif "head.weight" in reader.shapes:
        kind, classes = "mean" if "fc_norm.weight" in reader.shapes else "token", reader.weight("head", 2)[0]
    heads = HEADS.get(dim, max(dim // 64, 1))
    notes: tuple[str, ...] = ()
    if dim not in HEADS:
        heads = heads if dim % heads == 0 else 1
        notes = (f"the number of heads is in no tensor: {heads} are taken for {dim} channels",)
    depth = reader.count("blocks.")
    return VitConfig(dim, depth, heads, hidden, patch, grid, channels, classes or 1, kind), notes


def _name_of(config: VitConfig) -> str:
    sizes = {replace(known, num_classes=1): name for name, known in SIZES.items()}
    trunk = replace(config, head="mean", grid=0, channels=3, num_classes=1)
    size = next((name for known, name in sizes.items() if replace(known, grid=0) == trunk), None)
    named = size or f"d{config.dim}-{config.depth}-p{config.patch}"
    family = "vit" if config.head == "token" else "mae-vit"
    tail = {"probe": "-linear-probe", "features": "-features"}.get(config.head, "")
    return f"{family}-{named}{tail}"


def _reference(
    name: str, config: VitConfig, network: VisionTransformer, names: tuple[str, ...] | None = None
) -> ReferenceModel:
    side, channels = config.patch * config.grid, config.channels
    canvas = InputSpec(
        size=(side, side),
        channels=channels,
        mean=IMAGENET_MEAN if channels == 3 else (0.5,) * channels,
        std=IMAGENET_STD if channels == 3 else (0.5,) * channels,
        fit=Fit(kind="crop", stride=config.patch, resample="bicubic"),
    )
    if config.head == "features":
        return ReferenceModel(name, FAMILY, network, ModelSpec("features", canvas, DenseOutput(name="features"), ()))
    spec = ModelSpec("classify", canvas, DenseOutput(name="logits"), class_names(config.num_classes, names))
    return ReferenceModel(name, FAMILY, network, spec)


def _build(size: str, num_classes: int | None) -> ReferenceModel:
    config = replace(SIZES[size], num_classes=1000 if num_classes is None else num_classes)
    return _reference(_name_of(config), config, VisionTransformer(config).eval())


@register_model
def mae_vit_b16(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-B with patches of 16 pixels, as MAE fine-tunes it; ImageNet."""
    return _build("b16", num_classes)


@register_model
def mae_vit_l16(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-L with patches of 16 pixels, as MAE fine-tunes it; ImageNet."""
    return _build("l16", num_classes)


@register_model
def mae_vit_h14(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-H with patches of 14 pixels, as MAE fine-tunes it; ImageNet."""
    return _build("h14", num_classes)
