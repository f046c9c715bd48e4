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
from deploykit.models.class_names import COCO_CLASSES
from deploykit.models.families.vit import PatchEmbed
from deploykit.models.families.vitdet.mask_rcnn import (
    CASCADE,
    EASYCV_CASCADE,
    THRESHOLDS,
    WEIGHTS,
    HeadsConfig,
    MaskRcnn,
    with_thresholds,
)
from deploykit.models.families.vitdet.pyramid import Norm, SimplePyramid
from deploykit.models.families.vitdet.relative_attention import GridBlock
from deploykit.models.family import Family, imagenet_input
from deploykit.models.fuse import shared_copy
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.models.registry import ReferenceModel, Rewrite
from deploykit.spec import Fit, ModelSpec, NmsOutputs

__all__ = [
    "BACKBONES",
    "VARIANTS",
    "DetectorConfig",
    "MaskRcnnFamily",
    "PlainBackbone",
    "VitDetBackbone",
    "VitDetConfig",
    "VitDetFamily",
    "positions_of",
]

MEAN_COLOUR = (104, 116, 124)
"""ImageNet's mean of blue, green and red, as whole numbers: zeros, but for rounding, to the network."""

WEIGHTS_LICENCE = "Apache-2.0 (detectron2, EasyCV); what MAE's weights began is CC-BY-NC-4.0"

WindowMode = Literal["pad", "interpolate"]
"""How a map becomes windows: ``pad`` its windows with zeros (as published), or ``interpolate`` the map."""


@dataclass(frozen=True)
class VitDetConfig:
    """A layer graph.

    Attributes:
        dim: channels of a token.
        depth: number of blocks.
        heads: of each attention.
        hidden: channels inside each MLP.
        global_blocks: the blocks that attend over the whole map.
        conv_blocks: the blocks that convolutions follow.
        patch: the side of a patch in pixels.
        map_size: the side of the map in patches.
        pretrained: the side in patches that the absolute positions are of.
        window: the side in patches of what the other blocks attend over.
        out: channels of the pyramid.
        channels: of the images.
        norm: of the pyramid and the heads.
        window_mode: how a map becomes windows.
    """

    dim: int
    depth: int
    heads: int
    hidden: int
    global_blocks: tuple[int, ...]
    conv_blocks: tuple[int, ...] = ()
    patch: int = 16
    map_size: int = 64
    pretrained: int = 14
    window: int = 14
    out: int = 256
    channels: int = 3
    norm: Norm = "LN"
    window_mode: WindowMode = "pad"


@dataclass(frozen=True)
class DetectorConfig:
    """A backbone, and the heads on its pyramid."""

    backbone: VitDetConfig
    heads: HeadsConfig


BACKBONES = {
    "b": VitDetConfig(768, 12, 12, 3072, (2, 5, 8, 11)),
    "l": VitDetConfig(1024, 24, 16, 4096, (5, 11, 17, 23)),
    "h": VitDetConfig(1280, 32, 16, 5120, (7, 15, 23, 31)),
}
VARIANTS = {
    **{f"vitdet_{size}": DetectorConfig(config, HeadsConfig()) for size, config in BACKBONES.items()},
    "vitdet_cascade_b": DetectorConfig(BACKBONES["b"], HeadsConfig(weights=CASCADE, agnostic=True)),
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
                    window=0 if i in config.global_blocks else config.window,
                    map_size=config.map_size,
                    residual=i in config.conv_blocks,
                )
                for i in range(config.depth)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        rows, columns = x.shape[2:]
        if self.config.window_mode == "interpolate":
            window = self.config.window
            x = _resized(x, (max(rows // window, 1) * window, max(columns // window, 1) * window))
        x = x.permute(0, 2, 3, 1) + positions_of(self.pos_embed, *x.shape[2:])
        return _resized(self.blocks(x).permute(0, 3, 1, 2), (rows, columns))

    def random_weights(self, gain: float) -> None:
        """Positions that matter, so that lost ones show."""
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
    (
        re.compile(r"^roi_head\.bbox_head\.(\d\.)?shared_convs\.(\d)\."),
        lambda m: f"roi_heads.box_head.{m[1] or ''}conv{int(m[2]) + 1}.",
    ),
    (
        re.compile(r"^roi_head\.bbox_head\.(\d\.)?shared_fcs\.(\d)\."),
        lambda m: f"roi_heads.box_head.{m[1] or ''}fc{int(m[2]) + 1}.",
    ),
    (re.compile(r"^roi_head\.bbox_head\.(\d\.)?fc_cls\."), r"roi_heads.box_predictor.\1cls_score."),
    (re.compile(r"^roi_head\.bbox_head\.(\d\.)?fc_reg\."), r"roi_heads.box_predictor.\1bbox_pred."),
    (
        re.compile(r"^roi_head\.mask_head\.(\d\.)?convs\.(\d)\."),
        lambda m: f"roi_heads.mask_head.{m[1] or ''}mask_fcn{int(m[2]) + 1}.",
    ),
    (re.compile(r"^roi_head\.mask_head\.(\d\.)?upsample\."), r"roi_heads.mask_head.\1deconv."),
    (re.compile(r"^roi_head\.mask_head\.(\d\.)?conv_logits\."), r"roi_heads.mask_head.\1predictor."),
    (re.compile(r"^((?:backbone\.simfp_\d|roi_heads)\..*)\.conv\."), r"\1."),
    (re.compile(r"^((?:backbone\.simfp_\d|roi_heads)\..*)\.gn\."), r"\1.norm."),
)
"""Patterns of EasyCV's keys (mmdetection's for the heads) -> detectron2's keys."""


class MaskRcnnFamily(Family[DetectorConfig]):
    """What the families of detectors with Mask R-CNN's heads share: all but the backbone."""

    fixed_size_reason = "the positions of its attentions"

    def spec(self, config: DetectorConfig, names: tuple[str, ...] | None) -> ModelSpec:
        backbone, classes = config.backbone, config.heads.num_classes
        fit = Fit(stride=2 * backbone.patch, anchor="top-left", resample="bilinear", pad_colour=MEAN_COLOUR)
        canvas = imagenet_input(backbone.patch * backbone.map_size, fit, backbone.channels)
        if names is None or len(names) != classes:
            names = COCO_CLASSES if classes == len(COCO_CLASSES) else tuple(f"class {i}" for i in range(classes))
        return ModelSpec("instances", canvas, NmsOutputs(masks="masks"), names, thresholds=THRESHOLDS)

    def with_classes(self, config: DetectorConfig, num_classes: int) -> DetectorConfig:
        return replace(config, heads=replace(config.heads, num_classes=num_classes))

    def reference(
        self, config: DetectorConfig, network: nn.Module, names: tuple[str, ...] | None = None
    ) -> ReferenceModel:
        """See :meth:`Family.reference`; with the network's own thresholds."""
        assert isinstance(network, MaskRcnn)
        model = super().reference(config, network, names)
        return replace(model, spec=replace(model.spec, thresholds=network.thresholds))

    def loaded(self, config: DetectorConfig, network: nn.Module, shapes: CheckpointShapes) -> ReferenceModel:
        """The model, with values of the thresholds: there are none on the meta device."""
        return super().loaded(config, with_thresholds(network, THRESHOLDS), shapes)

    def heads_of(self, shapes: CheckpointShapes, backbone: VitDetConfig) -> HeadsConfig:
        """The sizes of a detector's heads; ``shapes`` under detectron2's names.

        Raises:
            CheckpointError: a tensor is missing, or of no size that heads have.
        """
        path, names = shapes.checkpoint.path, shapes.key_map

        def count(pattern: str) -> int:
            return len({m[1] for m in (re.match(pattern, name) for name in names) if m})

        stages = count(r"roi_heads\.box_predictor\.(\d)\.cls_score\.weight$")
        stage = ".0" if stages else ""
        if stages not in (0, len(CASCADE)):
            raise CheckpointError(
                f"{path} has a cascade of {stages} box heads, expected 3, whose weights of deltas are known"
            )
        classes = shapes.weight_shape(f"roi_heads.box_predictor{stage}.cls_score", 2)[0] - 1
        boxes = shapes.weight_shape(f"roi_heads.box_predictor{stage}.bbox_pred", 2)[0]
        if classes < 1 or boxes not in (4, 4 * classes):
            raise CheckpointError(
                f"{path}: the box head gives {boxes} values for {classes} classes, expected 4 or {4 * classes}"
            )
        masks = count(r"roi_heads\.mask_head\.(\d)\.predictor\.weight$") or 1
        if masks not in (1, stages):
            raise CheckpointError(f"{path} has {masks} mask heads for a cascade of {stages} box heads, expected 1 or 3")
        return HeadsConfig(
            num_classes=classes,
            channels=backbone.out,
            rpn_convs=count(r"proposal_generator\.rpn_head\.conv\.conv(\d)\.weight$"),
            box_convs=count(re.escape(f"roi_heads.box_head{stage}.") + r"conv(\d)\.weight$"),
            features=shapes.weight_shape(f"roi_heads.box_head{stage}.fc1", 2)[0],
            mask_convs=count(r"roi_heads\.mask_head\.(?:0\.)?mask_fcn(\d)\.weight$"),
            norm=backbone.norm,
            weights=WEIGHTS if not stages else CASCADE if masks == 1 else EASYCV_CASCADE,
            averaged="probabilities" if masks == 1 else "logits",
            mask_heads=masks,
            agnostic=(boxes == 4 and classes > 1) or bool(stages),
        )


class VitDetFamily(MaskRcnnFamily):
    """ViTDet by detectron2's keys and by EasyCV's."""

    name = "ViTDet"
    variants = VARIANTS

    def shapes_of(self, checkpoint: Checkpoint) -> CheckpointShapes | None:
        """The shapes under detectron2's names."""
        keys = checkpoint.state_dict.keys()
        if {"backbone.net.pos_embed", "backbone.simfp_2.0.weight"} <= keys:
            parts = ("backbone.", "proposal_generator.", "roi_heads.")
            return CheckpointShapes(checkpoint, self.name, key_map={key: key for key in keys if key.startswith(parts)})
        if not {"backbone.pos_embed", "neck.sfp_0.0.weight"} <= keys:
            return None
        return CheckpointShapes(checkpoint, self.name, key_map={_detectron_name(key): key for key in keys})

    def config_of(self, shapes: CheckpointShapes) -> DetectorConfig:
        heads = "roi_heads.box_predictor"
        if not {f"{heads}.cls_score.weight", f"{heads}.0.cls_score.weight"} & shapes.key_map.keys():
            raise CheckpointError(
                f"{shapes.checkpoint.path} has ViTDet's backbone and no heads of detection: there is nothing to export"
            )
        backbone = self.backbone_of(shapes)
        return DetectorConfig(backbone, self.heads_of(shapes, backbone))

    def backbone_of(self, shapes: CheckpointShapes) -> VitDetConfig:
        """The configuration of the backbone; ``shapes`` under detectron2's names.

        Raises:
            CheckpointError: a tensor is missing, or of no size that a backbone has.
        """
        path, names = shapes.checkpoint.path, shapes.key_map
        dim, channels, patch, _ = shapes.weight_shape("backbone.net.patch_embed.proj")
        positions = shapes.shape("backbone.net.pos_embed", 3)[1]
        side = math.isqrt(positions - 1)
        if side < 1 or side**2 + 1 != positions:
            raise CheckpointError(
                f"{path}: pos_embed has {positions} positions, expected those of a square and one for the class token"
            )
        depth = shapes.count_layers(names["backbone.net.blocks.0.norm1.weight"].removesuffix("0.norm1.weight"))
        tables = [shapes.shape(f"backbone.net.blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
        cells = [(length + 1) // 2 for length, _ in tables]
        each = tables[0][1]
        heads = dim // each
        if heads * each != dim or dim % 4:
            raise CheckpointError(
                f"{path}: {dim} channels are not {heads} heads of {each} channels: it is of a changed model"
            )
        window = min(cells) if min(cells) < max(cells) else VitDetConfig.window
        return VitDetConfig(
            dim,
            depth,
            heads,
            shapes.weight_shape("backbone.net.blocks.0.mlp.fc1", 2)[0],
            global_blocks=tuple(i for i, n in enumerate(cells) if n != window),
            conv_blocks=tuple(i for i in range(depth) if f"backbone.net.blocks.{i}.residual.conv1.weight" in names),
            patch=patch,
            map_size=max(cells),
            pretrained=side,
            window=window,
            out=shapes.weight_shape("backbone.simfp_4.0")[0],
            channels=channels,
            norm="LN" if "backbone.net.pos_embed" in shapes.shapes else "GN",
        )

    def network(self, config: DetectorConfig) -> MaskRcnn:
        return MaskRcnn(VitDetBackbone(config.backbone), config.heads)

    def name_of(self, config: DetectorConfig) -> str:
        own = config.backbone
        size = next((k for k, v in BACKBONES.items() if (v.dim, v.depth) == (own.dim, own.depth)), None)
        return f"vitdet-{'cascade-' * (len(config.heads.weights) > 1)}{size or f'd{own.dim}-{own.depth}'}"

    def tensors_of(self, shapes: CheckpointShapes, network: nn.Module) -> dict[str, Tensor]:
        """Those of the detector."""
        tensors = super().tensors_of(shapes, network)
        return {key: tensors[key] for key in shapes.key_map.values()}

    def assumed(self, config: DetectorConfig, shapes: CheckpointShapes) -> tuple[str, ...]:
        window = config.backbone.window
        return (
            f"windows of {window}x{window} cells, padded where the map ends within one: the same tensors go with maps "
            "that are scaled to whole windows; choose with --rewrite interpolate",
            "GELU and norms with an eps of 1e-06, and detectron2's anchors and thresholds: no tensor tells",
        )

    def rewrites(self, config: DetectorConfig) -> dict[str, Rewrite]:
        return {"interpolate": _interpolated}


def _detectron_name(key: str) -> str:
    for pattern, replacement in EASYCV:
        key = pattern.sub(replacement, key)
    return key


def _interpolated(network: nn.Module, argument: str) -> nn.Module:
    """The network that interpolates the map to whole windows instead of padding it."""
    if argument:
        raise UsageError(f"interpolate takes no argument, got {argument!r}")
    new = shared_copy(network)
    net = new.get_submodule("backbone.net")
    assert isinstance(net, PlainBackbone)
    net.config = replace(net.config, window_mode="interpolate")
    return new


FAMILY = VitDetFamily()
FAMILY.register(__name__)
from_checkpoint = FAMILY.from_checkpoint
