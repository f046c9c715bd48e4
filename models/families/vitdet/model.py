"""ViTDet: a plain vision transformer with attention in windows, a pyramid made of its last map, and Mask R-CNN on it.

Original: arXiv 2203.16527; detectron2's ``projects/ViTDet`` (Apache-2.0) and EasyCV's (Apache-2.0). Layout, keys and
numbers are facts taken over, the code is ours. detectron2's ``.pkl`` and EasyCV's ``.pth`` load; sizes are read from
their tensors. The two use norms of equal shape that differ, so that each file gets its own project's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from deploykit.errors import CheckpointError, UsageError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import COCO_CLASSES, IMAGENET_MEAN, IMAGENET_STD
from deploykit.models.families.vit import PatchEmbed
from deploykit.models.families.vitdet.mask_rcnn import CASCADE, WEIGHTS, HeadsConfig, MaskRcnn, with_thresholds
from deploykit.models.families.vitdet.pyramid import Norm, SimplePyramid
from deploykit.models.families.vitdet.relative_attention import GridBlock
from deploykit.models.fuse import shared_copy
from deploykit.models.loading.shapes import Shapes
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, register_model
from deploykit.spec import Fit, InputSpec, ModelSpec, NmsOutputs

__all__ = [
    "VARIANTS",
    "PlainBackbone",
    "VitDetBackbone",
    "VitDetConfig",
    "backbone_from_checkpoint",
    "heads_of",
    "positions_of",
]

FAMILY = "ViTDet"
MEAN_COLOUR = (104, 116, 124)
"""ImageNet's mean of blue, green and red, as whole numbers: zeros, but for rounding, to the network."""

WEIGHTS_LICENCE = "Apache-2.0 (detectron2, EasyCV); what MAE's weights began is CC-BY-NC-4.0"

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


def positions_of(table: Tensor, rows: int, columns: int) -> Tensor:
    """Absolute positions ``(1, rows, columns, dim)``: those of pretraining ``(1, 1 + side * side, dim)``, without the
    class token, interpolated bicubically."""
    side = math.isqrt(table.shape[1] - 1)
    planes = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if (rows, columns) != (side, side):
        planes = functional.interpolate(planes, size=(rows, columns), mode="bicubic", align_corners=False)
    return planes.permute(0, 2, 3, 1)


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
        x = x.permute(0, 2, 3, 1) + positions_of(self.pos_embed, *x.shape[2:])
        return _resized(self.blocks(x).permute(0, 3, 1, 2), (rows, columns))

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
    (re.compile(r"^rpn_head\.rpn_conv\.(\d)\.conv\."), r"proposal_generator.rpn_head.conv.conv\1."),
    (re.compile(r"^rpn_head\.rpn_cls\."), "proposal_generator.rpn_head.objectness_logits."),
    (re.compile(r"^rpn_head\.rpn_reg\."), "proposal_generator.rpn_head.anchor_deltas."),
    (re.compile(r"^roi_head\.bbox_head\.shared_convs\.(\d)\."), lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}."),
    (re.compile(r"^roi_head\.bbox_head\.shared_fcs\.(\d)\."), lambda m: f"roi_heads.box_head.fc{int(m[1]) + 1}."),
    (re.compile(r"^roi_head\.bbox_head\.fc_cls\."), "roi_heads.box_predictor.cls_score."),
    (re.compile(r"^roi_head\.bbox_head\.fc_reg\."), "roi_heads.box_predictor.bbox_pred."),
    (re.compile(r"^roi_head\.mask_head\.convs\.(\d)\."), lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}."),
    (re.compile(r"^roi_head\.mask_head\.upsample\."), "roi_heads.mask_head.deconv."),
    (re.compile(r"^roi_head\.mask_head\.conv_logits\."), "roi_heads.mask_head.predictor."),
    (re.compile(r"^((?:backbone\.simfp_\d|roi_heads)\..*)\.conv\."), r"\1."),
    (re.compile(r"^((?:backbone\.simfp_\d|roi_heads)\..*)\.gn\."), r"\1.norm."),
)
"""EasyCV's keys, which are mmdetection's for the heads, and detectron2's for them."""

HEADS = "roi_heads.box_predictor"


def _names_of(checkpoint: Checkpoint) -> tuple[dict[str, str], Norm] | None:
    """detectron2's name of each tensor -> its key in the file, and the norm of the project; None: it is no ViTDet."""
    keys = checkpoint.state_dict.keys()
    if {"backbone.net.pos_embed", "backbone.simfp_2.0.weight"} <= keys:
        parts = ("backbone.", "proposal_generator.", "roi_heads.")
        return {key: key for key in keys if key.startswith(parts)}, "LN"
    if {"backbone.pos_embed", "neck.sfp_0.0.weight"} <= keys:
        if "roi_head.bbox_head.0.fc_cls.weight" in keys:
            raise CheckpointError(
                f"{checkpoint.path} is EasyCV's ViTDet with a cascade, which is read in detectron2's form only"
            )
        names = {}
        for key in keys:
            name = key
            for pattern, replacement in EASYCV:
                name = pattern.sub(replacement, name)
            names[name] = key
        return names, "GN"
    return None


def backbone_from_checkpoint(checkpoint: Checkpoint) -> VitDetBackbone | None:
    """The backbone of a ViTDet checkpoint with its weights; None: it is none.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    layout = _names_of(checkpoint)
    if layout is None:
        return None
    names, norm = layout
    config = _config_of(checkpoint, names, norm)
    with torch.device("meta"):
        network = VitDetBackbone(config)
    tensors = checkpoint.float32()
    found = {name[9:]: tensors[key] for name, key in names.items() if name.startswith("backbone.")}
    load_weights(network, checkpoint, found, f"{FAMILY}'s backbone")
    return network.eval()


def from_checkpoint(checkpoint: Checkpoint) -> ReferenceModel | None:
    """Build a ViTDet Mask R-CNN from the tensors of a checkpoint; None: it is of another family.

    Raises:
        CheckpointError: it is nearly one. WeightsMismatchError: a tensor does not fit.
    """
    layout = _names_of(checkpoint)
    if layout is None:
        return None
    names, norm = layout
    if f"{HEADS}.cls_score.weight" not in names and f"{HEADS}.0.cls_score.weight" not in names:
        raise CheckpointError(
            f"{checkpoint.path} has ViTDet's backbone and no heads of detection: there is nothing to export"
        )
    config = _config_of(checkpoint, names, norm)
    heads = heads_of(checkpoint, names, config)
    with torch.device("meta"):
        network = MaskRcnn(VitDetBackbone(config), heads)
    tensors = checkpoint.float32()
    found = {name: tensors[key] for name, key in names.items()}
    load_weights(network, checkpoint, found, _name_of(config, heads))
    network = with_thresholds(network, network.thresholds)  # which have no values on the meta device
    return _reference(config, heads, network.eval(), checkpoint.names)


def heads_of(checkpoint: Checkpoint, keys: dict[str, str], config: VitDetConfig) -> HeadsConfig:
    """The sizes of a detector's heads; ``keys``: detectron2's name of each tensor -> its key in the file.

    Raises:
        CheckpointError: a tensor is missing, or of no size that heads have.
    """
    reader = Shapes(checkpoint, FAMILY)

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return reader.of(keys.get(name, name), axes)

    def count(pattern: str) -> int:
        found = [int(m[1]) for m in (re.match(pattern, name) for name in keys) if m]
        return len(set(found))

    stages = count(r"roi_heads\.box_predictor\.(\d)\.cls_score\.weight$")
    stage = ".0" if stages else ""
    if stages not in (0, len(CASCADE)):
        raise CheckpointError(f"{checkpoint.path} has a cascade of {stages} heads; what they divide by is known of 3")
    classes = shape(f"{HEADS}{stage}.cls_score.weight", 2)[0] - 1
    boxes = shape(f"{HEADS}{stage}.bbox_pred.weight", 2)[0]
    if classes < 1 or boxes not in (4, 4 * classes):
        raise CheckpointError(f"{checkpoint.path}: a head gives {boxes} numbers of boxes for {classes} classes")
    head = re.escape(f"roi_heads.box_head{stage}.")
    return HeadsConfig(
        num_classes=classes,
        channels=config.out,
        rpn_convs=count(r"proposal_generator\.rpn_head\.conv\.conv(\d)\.weight$"),
        box_convs=count(head + r"conv(\d)\.weight$"),
        features=shape(f"roi_heads.box_head{stage}.fc1.weight", 2)[0],
        mask_convs=count(r"roi_heads\.mask_head\.mask_fcn(\d)\.weight$"),
        norm=config.norm,
        weights=CASCADE if stages else WEIGHTS,
        agnostic=(boxes == 4 and classes > 1) or bool(stages),
    )


def _name_of(config: VitDetConfig, heads: HeadsConfig) -> str:
    size = next((k for k, v in VARIANTS.items() if (v.dim, v.depth) == (config.dim, config.depth)), None)
    kind = "cascade-" if len(heads.weights) > 1 else ""
    return f"vitdet-{kind}{size or f'd{config.dim}-{config.depth}'}"


def _reference(
    config: VitDetConfig, heads: HeadsConfig, network: MaskRcnn, names: tuple[str, ...] | None = None
) -> ReferenceModel:
    side = config.patch * config.cells
    canvas = InputSpec(
        size=(side, side),
        channels=config.channels,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        fit=Fit(stride=2 * config.patch, anchor="top-left", resample="bilinear", pad_colour=MEAN_COLOUR),
    )
    if names is None or len(names) != heads.num_classes:
        coco = heads.num_classes == len(COCO_CLASSES)
        names = COCO_CLASSES if coco else tuple(f"class {i}" for i in range(heads.num_classes))
    spec = ModelSpec("instances", canvas, NmsOutputs(masks="masks"), names, thresholds=network.thresholds)
    return ReferenceModel(
        _name_of(config, heads),
        FAMILY,
        network,
        spec,
        rewrites={"interpolate": _interpolated},
        fixed_shape="the positions of its attentions",
    )


def _interpolated(network: nn.Module, argument: str) -> nn.Module:
    """The map interpolated to whole windows instead of padded."""
    if argument:
        raise UsageError(f"interpolate takes no argument, got {argument!r}")
    new = shared_copy(network)
    net = new.get_submodule("backbone.net")
    assert isinstance(net, PlainBackbone)
    net.config = replace(net.config, reach="interpolate")
    return new


def _build(size: str, num_classes: int | None, weights: tuple[tuple[float, ...], ...] = WEIGHTS) -> ReferenceModel:
    config = VARIANTS[size]
    heads = HeadsConfig(num_classes=num_classes or 80, weights=weights, agnostic=weights is CASCADE)
    return _reference(config, heads, MaskRcnn(VitDetBackbone(config), heads).eval())


@register_model
def vitdet_b(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-B with Mask R-CNN; COCO's 80 classes, 1024 px."""
    return _build("b", num_classes)


@register_model
def vitdet_l(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-L with Mask R-CNN; COCO's 80 classes, 1024 px."""
    return _build("l", num_classes)


@register_model
def vitdet_h(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-H with Mask R-CNN; COCO's 80 classes, 1024 px."""
    return _build("h", num_classes)


@register_model
def vitdet_cascade_b(*, num_classes: int | None = None) -> ReferenceModel:
    """ViT-B with a cascade of three box heads; COCO's 80 classes, 1024 px."""
    return _build("b", num_classes, CASCADE)


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
