"""ViTDet's backbone: a plain vision transformer with attention in windows, and a pyramid made of its last map.

Original: arXiv 2203.16527; detectron2's ``projects/ViTDet`` (Apache-2.0) and EasyCV's (Apache-2.0). Layout, keys and
numbers are facts taken over, the code is ours. detectron2's ``.pkl`` and EasyCV's ``.pth`` load; sizes are read from
their tensors. The two use norms of equal shape that differ, so that each file gets its own project's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError
from deploykit.models._checkpoint import Checkpoint
from deploykit.models._shapes import Shapes
from deploykit.models._weights import load_weights
from deploykit.models.layers.pyramid import Norm, SimplePyramid
from deploykit.models.layers.relative_attention import GridBlock
from deploykit.models.vit import PatchEmbed

__all__ = ["VARIANTS", "PlainBackbone", "VitDetBackbone", "VitDetConfig", "backbone_from_checkpoint", "layout_of"]

FAMILY = "ViTDet"

Reach = Literal["pad", "interpolate"]
"""How a map becomes windows: ``pad`` its windows with zeros (as published), or ``interpolate`` the map."""


@dataclass(frozen=True)
class VitDetConfig:
    """A layer graph. ``cells``: the side of the map, ``pretrained`` that of the absolute positions, in patches.

    ``whole`` are the blocks that attend over the whole map, ``residual`` those behind which convolutions follow.
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    whole: tuple[int, ...]
    residual: tuple[int, ...] = ()
    patch: int = 16
    cells: int = 64
    pretrained: int = 14
    window: int = 14
    out: int = 256
    channels: int = 3
    norm: Norm = "LN"
    reach: Reach = "pad"


VARIANTS = {
    "b": VitDetConfig(768, 12, 12, 3072, (2, 5, 8, 11)),
    "l": VitDetConfig(1024, 24, 16, 4096, (5, 11, 17, 23)),
    "h": VitDetConfig(1280, 32, 16, 5120, (7, 15, 23, 31)),
}


class PlainBackbone(nn.Module):
    """``(B, C, H, W)`` to one map ``(B, dim, H / patch, W / patch)``."""

    def __init__(self, config: VitDetConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.patch_embed = PatchEmbed(config.channels, dim, config.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.pretrained**2 + 1, dim))
        self.blocks = nn.Sequential(
            *(
                GridBlock(
                    dim,
                    config.heads,
                    config.hidden,
                    window=0 if i in config.whole else config.window,
                    cells=config.cells,
                    residual=i in config.residual,
                )
                for i in range(config.depth)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        rows, columns = x.shape[2:]
        if self.config.reach == "interpolate":
            window = self.config.window
            x = _resized(x, (max(rows // window, 1) * window, max(columns // window, 1) * window))
        x = x.permute(0, 2, 3, 1) + self.positions(*x.shape[2:])
        return _resized(self.blocks(x).permute(0, 3, 1, 2), (rows, columns))

    def positions(self, rows: int, columns: int) -> Tensor:
        """Absolute positions ``(1, rows, columns, dim)``: those of pretraining without the class token, bicubic."""
        side = self.config.pretrained
        planes = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if (rows, columns) != (side, side):
            planes = functional.interpolate(planes, size=(rows, columns), mode="bicubic", align_corners=False)
        return planes.permute(0, 2, 3, 1)

    def random_weights(self) -> None:
        """Positions that matter."""
        nn.init.normal_(self.pos_embed, std=0.5)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[2:]) == size:
        return x
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


class VitDetBackbone(SimplePyramid):
    """``(B, C, H, W)`` to P2 to P6, ``(B, out, H / s, W / s)`` with s = 4, 8, 16, 32, 64 (for patches of 16)."""

    def __init__(self, config: VitDetConfig) -> None:
        super().__init__(config.dim, config.out, config.norm)
        self.net = PlainBackbone(config)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return super().forward(self.net(images))


EASYCV = (
    (re.compile(r"^backbone\."), "backbone.net."),
    (re.compile(r"^neck\.sfp_([0-3])\."), lambda m: f"backbone.simfp_{int(m[1]) + 2}."),
    (re.compile(r"^(backbone\.simfp_\d\.\d)\.conv\."), r"\1."),
    (re.compile(r"^(backbone\.simfp_\d\.\d)\.gn\."), r"\1.norm."),
)
"""EasyCV's keys, and detectron2's for them."""


def layout_of(checkpoint: Checkpoint) -> tuple[dict[str, str], Norm] | None:
    """The key of each backbone tensor in detectron2's names, and the norm of the project; None: it is no ViTDet."""
    keys = checkpoint.state_dict.keys()
    if "backbone.net.pos_embed" in keys and "backbone.simfp_2.0.weight" in keys:
        return {key: key for key in keys if key.startswith("backbone.")}, "LN"
    if "backbone.pos_embed" in keys and "neck.sfp_0.0.weight" in keys:
        names = {}
        for key in keys:
            if key.startswith(("backbone.", "neck.")):
                name = key
                for pattern, new in EASYCV:
                    name = pattern.sub(new, name)
                names[key] = name
        return names, "GN"
    return None


def backbone_from_checkpoint(checkpoint: Checkpoint) -> VitDetBackbone | None:
    """The backbone of a ViTDet checkpoint with its weights; None: it is none.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    layout = layout_of(checkpoint)
    if layout is None:
        return None
    names, norm = layout
    config = _config_of(checkpoint, {name: key for key, name in names.items()}, norm)
    with torch.device("meta"):
        network = VitDetBackbone(config)
    tensors = checkpoint.float32()
    found = {name.removeprefix("backbone."): tensors[key] for key, name in names.items()}
    load_weights(network, checkpoint, found, f"{FAMILY}'s backbone")
    return network.eval()


def _config_of(checkpoint: Checkpoint, keys: dict[str, str], norm: Norm) -> VitDetConfig:
    reader = Shapes(checkpoint, FAMILY)

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return reader.of(keys.get(name, name), axes)

    dim, channels, patch, _ = shape("backbone.net.patch_embed.proj.weight", 4)
    positions = shape("backbone.net.pos_embed", 3)[1]
    side = math.isqrt(positions - 1)
    if side < 1 or side**2 + 1 != positions:
        raise CheckpointError(
            f"{checkpoint.path}: pos_embed has {positions} positions, which are not one and those of a square"
        )
    depth = reader.count(keys["backbone.net.blocks.0.norm1.weight"].removesuffix("0.norm1.weight"))
    tables = [shape(f"backbone.net.blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    cells = [(length + 1) // 2 for length, _ in tables]
    each = tables[0][1]
    heads = dim // each
    if heads * each != dim or dim % 4:
        raise CheckpointError(f"{checkpoint.path}: {dim} channels are not {heads} heads of {each}; the file is damaged")
    window = min(cells) if min(cells) < max(cells) else VitDetConfig.window
    return VitDetConfig(
        dim,
        depth,
        heads,
        shape("backbone.net.blocks.0.mlp.fc1.weight", 2)[0],
        whole=tuple(i for i, n in enumerate(cells) if n != window),
        residual=tuple(i for i in range(depth) if f"backbone.net.blocks.{i}.residual.conv1.weight" in keys),
        patch=patch,
        cells=max(cells),
        pretrained=side,
        window=window,
        out=shape("backbone.simfp_4.0.weight", 4)[0],
        channels=channels,
        norm=norm,
    )
