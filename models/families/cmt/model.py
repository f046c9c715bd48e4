"""CMT: transformers with convolutions inside, for classification.

Original: arXiv 2107.06263; huawei-noah/Efficient-AI-Backbones, cmt_pytorch (Apache-2.0). Layout, keys and numbers are
facts taken over, the code is ours. State dicts load unchanged, of any widths, depths and sizes: they are read from the
tensors. ``(B, 3, H, W)`` becomes logits ``(B, classes)``; H and W are multiples of 32.

Each stage has one learned bias for its attentions, whose size is that of the map it was trained on. For other sizes it
is interpolated, on the grids of the queries and of the keys
(:func:`deploykit.models.families.cmt.layers.resized_bias`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError
from deploykit.models.class_names import class_names
from deploykit.models.families.cmt.layers import CmtBlock, PatchEmbed, resized_bias
from deploykit.models.family import Family, classifier_spec, imagenet_input
from deploykit.models.fuse import affine_of, fold_bn_into_next, fold_conv_bn, fuse_model, shared_copy
from deploykit.models.layers.norm import randomise_affine
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.spec import Fit, ModelSpec

WEIGHTS_LICENCE = "Apache-2.0 code of Huawei; the weights have no statement of their own"

STAGES = "abcd"
HEADS = (1, 2, 4, 8)
REDUCTIONS = (8, 4, 2, 1)
STRIDE = 32
MAX_SIDE = 128  # of the first stage's map, in cells; the size of its bias grows with the fourth power


@dataclass(frozen=True)
class CmtConfig:
    """A layer graph. ``size``: the side of the images that the biases are for; ``hidden``: channels inside a block."""

    size: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    hidden: tuple[int, ...]
    stem: int
    heads: tuple[int, ...] = HEADS
    features: int = 1280
    num_classes: int = 1000


def _published(size: int, dim: int, depths: tuple[int, ...], ratio: float, stem: int) -> CmtConfig:
    dims = tuple(dim << i for i in range(4))
    return CmtConfig(size, dims, depths, tuple(int(d * ratio) for d in dims), stem)


VARIANTS = {
    "cmt_ti": _published(160, 46, (2, 2, 10, 2), 3.6, 16),
    "cmt_xs": _published(192, 52, (3, 3, 12, 3), 3.77, 16),
    "cmt_s": _published(224, 64, (3, 3, 16, 3), 4, 32),
    "cmt_b": _published(256, 76, (4, 4, 20, 4), 4, 38),
}


class Cmt(nn.Module):
    """``(B, 3, H, W)`` to logits ``(B, classes)``; the sides are multiples of 32."""

    def __init__(self, config: CmtConfig) -> None:
        super().__init__()
        self.config = config
        channels = 3
        for i, stride in enumerate((2, 1, 1), 1):
            self.add_module(f"stem_conv{i}", nn.Conv2d(channels, config.stem, 3, stride, 1))
            self.add_module(f"stem_norm{i}", nn.BatchNorm2d(config.stem))
            channels = config.stem
        for i, stage in enumerate(STAGES):
            dim, reduction, heads = config.dims[i], REDUCTIONS[i], config.heads[i]
            self.add_module(f"patch_embed_{stage}", PatchEmbed(channels, dim))
            side = config.size // 4 >> i
            self.register_parameter(
                f"relative_pos_{stage}", nn.Parameter(torch.zeros(heads, side**2, (side // reduction) ** 2))
            )
            blocks = (CmtBlock(dim, heads, config.hidden[i], reduction) for _ in range(config.depths[i]))
            self.add_module(f"blocks_{stage}", nn.ModuleList(blocks))
            channels = dim
        self._fc = nn.Conv2d(channels, config.features, 1)
        self._bn: nn.Module = nn.BatchNorm2d(config.features)
        self.head = nn.Linear(config.features, config.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for i in (1, 2, 3):
            x = self.get_submodule(f"stem_norm{i}")(functional.gelu(self.get_submodule(f"stem_conv{i}")(x)))
        for i, stage in enumerate(STAGES):
            x = self.get_submodule(f"patch_embed_{stage}")(x)
            bias = self.bias(i, x.shape[2], x.shape[3])
            blocks = self.get_submodule(f"blocks_{stage}")
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                x = block(x, bias)
        x = functional.silu(self._bn(self._fc(x)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out

    def bias(self, i: int, rows: int, columns: int) -> Tensor:
        """The bias of stage ``i`` for maps of that size, ``(heads, rows * columns, keys)``."""
        learned = self.get_parameter(f"relative_pos_{STAGES[i]}")
        return resized_bias(learned, self.config.size // 4 >> i, rows, columns, REDUCTIONS[i])

    def fuse(self, path: str) -> nn.Module:
        """The same with folded batch norms: all but those before padded convolutions, which become plain factors."""
        new = shared_copy(self)
        new._modules = {name: None if m is None else fuse_model(m, name) for name, m in self._modules.items()}
        for i in (1, 2, 3):
            norm = self.get_submodule(f"stem_norm{i}")
            assert isinstance(norm, nn.BatchNorm2d)
            if i < 3:
                setattr(new, f"stem_norm{i}", affine_of(norm, f"stem_norm{i}"))
                continue
            embed = new.get_submodule("patch_embed_a")
            assert isinstance(embed, PatchEmbed)
            embed.proj = fold_bn_into_next(norm, embed.proj, "patch_embed_a.proj")
            setattr(new, f"stem_norm{i}", nn.Identity())
        assert isinstance(self._bn, nn.BatchNorm2d)
        new._fc, new._bn = fold_conv_bn(self._fc, self._bn, "_fc"), nn.Identity()
        return new

    def random_weights(self, gain: float) -> None:
        """Norms and biases that matter, so that a lost one shows."""
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                randomise_affine(module)
        for stage in STAGES:
            nn.init.normal_(self.get_parameter(f"relative_pos_{stage}"), std=0.5)


class CmtFamily(Family[CmtConfig]):
    """CMT by the authors' keys; its size is that of its learned biases."""

    name = "CMT"
    variants = VARIANTS
    signature = frozenset({"stem_conv1.weight", "relative_pos_a", "blocks_a.0.attn.q.weight"})

    def config_of(self, shapes: CheckpointShapes) -> CmtConfig:
        path = shapes.checkpoint.path
        biases = [shapes.shape(f"relative_pos_{stage}", 3) for stage in STAGES]
        sides = [math.isqrt(bias[1]) for bias in biases]
        whole = all(side**2 == bias[1] for side, bias in zip(sides, biases, strict=True))
        halved = all(sides[0] == side << i for i, side in enumerate(sides))
        if not whole or not halved or sides[0] % 8 or sides[0] > MAX_SIDE:
            raise CheckpointError(
                f"{path}: its biases have {', '.join(str(bias[1]) for bias in biases)} positions, expected those of "
                "four square maps, each with half the side of the one before"
            )
        dims = tuple(shapes.weight_shape(f"patch_embed_{stage}.proj")[0] for stage in STAGES)
        for dim, bias, stage in zip(dims, biases, STAGES, strict=True):
            if dim % bias[0]:  # no other tensor's shape depends on it
                raise CheckpointError(
                    f"{path}: relative_pos_{stage} has {bias[0]} heads, expected a divisor of the stage's {dim} "
                    "channels: it is of a changed model, or of another network (deploykit inspect shows it)"
                )
        return CmtConfig(
            size=4 * sides[0],
            dims=dims,
            depths=tuple(shapes.count_layers(f"blocks_{stage}.") for stage in STAGES),
            hidden=tuple(shapes.weight_shape(f"blocks_{stage}.0.mlp.proj")[0] for stage in STAGES),
            stem=shapes.weight_shape("stem_conv1")[0],
            heads=tuple(bias[0] for bias in biases),
            features=shapes.weight_shape("_fc")[0],
            num_classes=shapes.weight_shape("head", 2)[0],
        )

    def network(self, config: CmtConfig) -> Cmt:
        return Cmt(config)

    def spec(self, config: CmtConfig, names: tuple[str, ...] | None) -> ModelSpec:
        fit = Fit(kind="crop", stride=STRIDE, crop_share=0.9, resample="bicubic")
        return classifier_spec(imagenet_input(config.size, fit), class_names(config.num_classes, names))

    def assumed(self, config: CmtConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        return ("GELU, SiLU before the head, and layer norms with an eps of 1e-06, as CMT has them: no tensor tells",)

    def name_of(self, config: CmtConfig) -> str:
        known = self.variant_of(config, "size")
        if known is None:
            return f"cmt-d{config.dims[0]}-{'-'.join(map(str, config.depths))}"
        return known if config.size == VARIANTS[known.replace("-", "_")].size else f"{known}-{config.size}"


FAMILY = CmtFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
