"""Vision transformers for classification, and MAE's in all their layouts: fine-tuned, linear probe, pretrained.

Originals: ViT arXiv 2010.11929, in the keys of timm (Apache-2.0); MAE arXiv 2111.06377, facebookresearch/mae
(CC-BY-NC-4.0, the code and the weights). Layouts, keys and numbers are facts taken over, the code is ours.

``(B, C, H, W)`` becomes logits ``(B, classes)``, or features ``(B, dim)`` where a checkpoint has no head. Position
embeddings are interpolated bicubically to other sizes, as in MAE; an export for a fixed size does it once.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.class_names import class_names
from deploykit.models.classifier_head import (
    HeadLayer,
    LayeredHead,
    ProbeHead,
    activation_of,
    head_assumption,
    head_layers,
)
from deploykit.models.family import Family, classifier_spec, imagenet_input
from deploykit.models.layers.attention import EPS, MLP_ACTIVATIONS, TransformerBlock
from deploykit.models.layers.norm import randomise_affine
from deploykit.models.loading.file_facts import architecture, chosen, count_told, told
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.models.registry import ReferenceModel
from deploykit.spec import DenseOutput, Fit, ModelSpec

WEIGHTS_LICENCE = "CC-BY-NC-4.0 (MAE, the code too); of other ViTs their own"

HEADS = {192: 3, 384: 6, 512: 8, 640: 10, 768: 12, 896: 14, 1024: 16, 1152: 16, 1280: 16, 1408: 16, 1664: 16}
"""Number of heads by width, as most published ones have it; no tensor tells it."""

WIDTHS = {
    "tiny": (192,), "small": (384, 768), "base": (768,), "large": (1024,), "huge": (1280,), "giant": (1408, 1536),
    "gigantic": (1664,),
}  # fmt: skip
"""Channels by the word in a network's name; timm's first small ViT had 768."""

POOLS = {"true": "avg", "avg": "avg", "mean": "avg", "gap": "avg", "false": "token", "token": "token", "cls": "token"}
"""What files say of what is classified (MAE: whether it is the average)."""

_OF_HEADS = ("head", "layers", "bias", "representation", "head_activation")
"""Fields of a configuration that are its head's."""

ALSO = {192: "MAE-Lite's has 12", 384: "MoCo v3's has 12"}
"""Published ones with another number of heads."""

OTHERS = ("blocks.0.ls1.gamma", "blocks.0.gamma_1", "blocks.0.attn.q_norm.weight", "blocks.0.attn.q_bias")
"""Tensors of transformers that compute something else: scaled branches, normalised queries, biases apart."""

Head = Literal["mean", "avg", "token", "probe", "features", "token-features"]
"""What is classified: the normalised ``mean`` of the patches (fine-tuned MAE), the average (``avg``) of the normalised
patches, the class ``token``, the same after a batch norm (linear ``probe``); or nothing, and the average of the
normalised patches comes out as ``features``, or the class token as ``token-features``."""

FEATURES = ("features", "token-features")


@dataclass(frozen=True)
class VitConfig:
    """A layer graph: tokens of ``dim`` channels from patches of ``patch`` pixels on a grid of ``grid`` a side.

    ``layers``: of a head that has several; ``bias``: of a head that is one. ``representation``: width of timm's former
    layer before the head (``pre_logits``), with a tanh; 0: there is none.
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    patch: int = 16
    grid: int = 14
    channels: int = 3
    num_classes: int = 1000
    head: Head = "mean"
    layers: tuple[HeadLayer, ...] = ()
    bias: bool = True
    representation: int = 0
    activation: str = "gelu"
    head_activation: str = "relu"
    eps: float = EPS


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


class VisionTransformer(nn.Module):
    """``(B, C, H, W)`` to ``(B, classes)``, or to features ``(B, dim)``; H and W are multiples of the patch."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embed = PatchEmbed(config.channels, dim, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2 + 1, dim))
        own = {"eps": config.eps, "activation": config.activation}
        self.blocks = nn.Sequential(
            *(TransformerBlock(dim, config.heads, config.hidden, **own) for _ in range(config.depth))  # type: ignore[arg-type]  # a number and a name
        )
        if config.head == "mean":
            self.fc_norm = nn.LayerNorm(dim, eps=config.eps)
        else:
            self.norm = nn.LayerNorm(dim, eps=config.eps)
        width = config.representation or dim
        if config.representation:
            self.pre_logits = nn.Sequential(OrderedDict(fc=nn.Linear(dim, width), act=nn.Tanh()))
        self.head: nn.Module
        if config.head == "probe":
            self.head = ProbeHead(width, config.num_classes)
        elif config.layers:
            self.head = LayeredHead(width, config.layers, config.head_activation)
        elif config.head not in FEATURES:
            self.head = nn.Linear(width, config.num_classes, bias=config.bias)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        rows, columns = patches.shape[2:]
        tokens = patches.flatten(2).transpose(1, 2) + self.positions(rows, columns)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(images.shape[0], -1, -1)
        out = self.pooled(self.blocks(torch.cat((first, tokens), 1)))
        if self.config.representation:
            out = self.pre_logits(out)
        if self.config.head not in FEATURES:
            out = self.head(out)
        return out

    def pooled(self, tokens: Tensor) -> Tensor:
        """What the head is given: ``(B, 1 + N, dim)`` to ``(B, dim)``."""
        if self.config.head == "mean":  # in this order: normalised is the mean, and not what it is of
            normalised: Tensor = self.fc_norm(tokens[:, 1:].mean(1))
            return normalised
        if self.config.head in ("features", "avg"):
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
    choices = ("heads", "pool", "activation", "head_activation")
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
        _check_name(shapes, dim, patch)
        layers = head_layers(shapes, "head")
        kind = _kind(shapes, layers)
        return VitConfig(
            dim,
            shapes.count_layers("blocks."),
            _heads(shapes, dim),
            hidden,
            patch,
            grid,
            channels,
            head=kind,
            num_classes=1 if kind in FEATURES else layers[-1].width if layers else shapes.weight_shape("head", 2)[0],
            layers=() if kind == "probe" else layers,
            bias="head.weight" not in shapes.shapes or "head.bias" in shapes.shapes,
            representation=shapes.weight_shape("pre_logits.fc", 2)[0] if "pre_logits.fc.weight" in shapes.shapes else 0,
            activation=_activation(shapes),
            head_activation=activation_of(shapes, () if kind == "probe" else layers),
            eps=_eps(shapes),
        )

    def network(self, config: VitConfig) -> VisionTransformer:
        return VisionTransformer(config)

    def spec(self, config: VitConfig, names: tuple[str, ...] | None) -> ModelSpec:
        fit = Fit(kind="crop", stride=config.patch, resample="bicubic")
        canvas = imagenet_input(config.patch * config.grid, fit, config.channels)
        if config.head in FEATURES:
            return ModelSpec("features", canvas, DenseOutput(name="features"), ())
        return classifier_spec(canvas, class_names(config.num_classes, names))

    def name_of(self, config: VitConfig) -> str:
        known = self.variant_of(config, *_OF_HEADS, "grid", "channels", "activation", "eps")
        size = known.rpartition("-")[2] if known else f"d{config.dim}-{config.depth}-p{config.patch}"
        if config.heads != HEADS.get(config.dim):
            size = f"{size}-h{config.heads}"
        tail = {"probe": "-linear-probe", "features": "-features", "avg": "-avg", "token-features": "-token-features"}
        return f"{'vit' if config.head in ('token', 'avg') else 'mae-vit'}-{size}{tail.get(config.head, '')}"

    def tensors_of(self, shapes: CheckpointShapes, network: nn.Module) -> dict[str, Tensor]:
        """The tensors without the decoder of a pretraining checkpoint."""
        return {key: value for key, value in super().tensors_of(shapes, network).items() if not _is_decoder(key)}

    def loaded(self, config: VitConfig, network: nn.Module, shapes: CheckpointShapes) -> ReferenceModel:
        """With a note on what was dropped."""
        dropped = sum(map(_is_decoder, shapes.shapes))
        notes = (f"the decoder of its pretraining is dropped ({dropped} tensors)",) if dropped else ()
        return replace(super().loaded(config, network, shapes), notes=notes)

    def assumed(self, config: VitConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        return tuple(_assumed(config, shapes))


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


def _told_pool(shapes: CheckpointShapes) -> tuple[str, str] | None:
    """What the file says that is classified, ``token`` or ``avg``, and where it says so."""
    found, normed = told(shapes.checkpoint, "global_pool", "gp"), "fc_norm.weight" in shapes.shapes
    if found is None or found[0] == "":
        return ("avg", "tensor fc_norm.weight") if normed else None
    pool = POOLS.get(str(found[0]).lower())
    if pool is None or (normed and pool == "token"):
        raise CheckpointError(
            f"{shapes.checkpoint.path}: {found[1]} says {str(found[0])[:80]!r}, "
            + ("and its fc_norm is of an average of the patches" if pool else "token and avg are built, others are not")
        )
    return pool, found[1]


def _kind(shapes: CheckpointShapes, layers: tuple[HeadLayer, ...]) -> Head:
    """What is classified, and by what kind of head."""
    known = shapes.shapes.keys()
    normed = "head.0.running_mean" in known and "head.0.weight" not in known
    probe = normed and [layer.kind for layer in layers] == ["batch-norm", "linear"]
    found = _told_pool(shapes)
    if found is None and probe:
        found = "token", "batch norm head.0 (MAE's linear probe)"
    pool: str | None = chosen(shapes.checkpoint, "pool", shapes.checkpoint.loading.pool, found)
    if "head.weight" not in known and not layers:
        return "token-features" if pool == "token" else "features"
    if "fc_norm.weight" in known:
        return "mean"
    if pool == "avg":
        return "avg"
    return "probe" if probe else "token"


def _activation(shapes: CheckpointShapes) -> str:
    """The activation of the blocks: as asked for, as the file tells, or GELU."""
    path, found = shapes.checkpoint.path, told(shapes.checkpoint, "act_layer", "hidden_act")
    same = {"gelu": "gelu", "gelu_tanh": "gelu-tanh", "gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh",
            "gelu_approximate": "gelu-tanh", "quick_gelu": "quick-gelu", "quickgelu": "quick-gelu"}  # fmt: skip
    if found is not None:
        name = same.get(str(found[0]).lower().replace("-", "_"))
        if name is None:
            known = ", ".join(MLP_ACTIVATIONS)
            raise CheckpointError(f"{path}: {found[1]} says {str(found[0])[:80]!r}: {known} are built, others are not")
        found = name, found[1]
    name = chosen(shapes.checkpoint, "activation", shapes.checkpoint.loading.activation, found) or "gelu"
    if name not in MLP_ACTIVATIONS:
        raise UsageError(f"--activation of a vision transformer is one of {', '.join(MLP_ACTIVATIONS)}, got {name!r}")
    return str(name)


def _told_eps(shapes: CheckpointShapes) -> float | None:
    found = told(shapes.checkpoint, "layer_norm_eps", "norm_eps")
    valid = found is not None and isinstance(found[0], float) and 0.0 < found[0] < 0.1
    return float(found[0]) if found is not None and valid else None


def _eps(shapes: CheckpointShapes) -> float:
    return _told_eps(shapes) or EPS


def _check_name(shapes: CheckpointShapes, dim: int, patch: int) -> None:
    """Check that the tensors are of the network that the file names, ``vit_small_patch16_224``.

    Raises:
        CheckpointError: they are not.
    """
    named = architecture(shapes.checkpoint)
    if named is None or not re.search("vit|deit", named[0]) or "plus" in named[0]:
        return
    size = re.search(rf"(?:^|_)({'|'.join(WIDTHS)})(?:_|$)", named[0])
    pixels = re.search(r"patch([0-9]{1,2})(?:_|$)", named[0])
    for what, expected, found in (
        ("channels", WIDTHS[size[1]] if size else (dim,), dim),
        ("pixels a patch", (int(pixels[1]),) if pixels else (patch,), patch),
    ):
        if found not in expected:
            raise CheckpointError(
                f"{shapes.checkpoint.path} is a {named[0]} by its {named[1]}, which has {expected[0]} {what}, and its "
                f"tensors have {found}: the name or the weights are of another model"
            )


def _assumed(config: VitConfig, shapes: CheckpointShapes) -> list[str]:
    """What neither the file nor the user said of the network."""
    asked, said = shapes.checkpoint.loading, []
    if asked.heads is None and _told_heads(shapes) is None:
        also = f" ({ALSO[config.dim]})" if config.dim in ALSO else ""
        said.append(
            f"{config.heads} heads for {config.dim} channels, as published ViTs of that width have{also}: no tensor "
            "tells; choose with --heads"
        )
    if asked.pool is None and config.head != "probe" and _told_pool(shapes) is None:
        what = "the class token is classified, as timm's usual ViTs do: the average of the patches"
        if config.head in FEATURES:
            what = "the features are the average of the normalised patches: the class token's"
        said.append(f"{what} would have the same tensors; choose with --pool")
    if asked.activation is None and told(shapes.checkpoint, "act_layer", "hidden_act") is None:
        said.append("GELU by the error function: no tensor tells; choose with --activation")
    if _told_eps(shapes) is None:
        said.append(f"layer norms with an eps of {EPS:g}, as timm's ViTs have: no tensor tells")
    return [*said, *head_assumption(shapes, "head", config.layers)]


def _is_decoder(key: str) -> bool:
    return key == "mask_token" or key.startswith("decoder_")


FAMILY = VitFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
