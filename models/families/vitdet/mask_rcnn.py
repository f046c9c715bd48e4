"""MaskRcnn: from images to a fixed number of detections with masks, on the levels of any backbone.

Definition and keys as in :mod:`deploykit.models.families.vitdet.two_stage`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from deploykit.models.families.vitdet.pyramid import Norm
from deploykit.models.families.vitdet.two_stage import (
    MISSING,
    NONE,
    BoxHead,
    BoxPredictor,
    MaskHead,
    Proposals,
    RoiPooler,
    RpnHead,
    clipped,
    moved,
)
from deploykit.models.fuse import shared_copy
from deploykit.models.layers.operators import best_scores, keep_best
from deploykit.spec import Thresholds

__all__ = [
    "CASCADE",
    "EASYCV_CASCADE",
    "THRESHOLDS",
    "WEIGHTS",
    "HeadsConfig",
    "MaskRcnn",
    "RoiHeads",
    "with_thresholds",
]

WEIGHTS = ((10.0, 10.0, 5.0, 5.0),)
CASCADE = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
"""What the deltas of a box head are divided by, for each stage of a cascade."""

EASYCV_CASCADE = (*CASCADE[:2], (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067))
"""The same in EasyCV and mmdetection, which state deviations, with three digits in the last stage."""

THRESHOLDS = Thresholds(conf=0.05, iou=0.5, max_det=100, pre_nms_topk=3000)


@dataclass(frozen=True)
class HeadsConfig:
    """Sizes of the heads. ``weights``: what the deltas of boxes are divided by, one entry per stage; a plain Mask R-CNN
    has one. ``norm``: of the convolutions of boxes and masks; ``agnostic``: boxes are moved once for all classes.

    ``averaged``: whether the class of a cascade is that of the mean probabilities of its stages (detectron2) or of the
    mean logits (mmdetection). ``mask_heads``: how many there are, whose probabilities are averaged (mmdetection: one
    for each stage).
    """

    num_classes: int = 80
    channels: int = 256
    rpn_convs: int = 2
    box_convs: int = 4
    features: int = 1024
    mask_convs: int = 4
    norm: Norm = "LN"
    weights: tuple[tuple[float, ...], ...] = WEIGHTS
    agnostic: bool = False
    averaged: Literal["probabilities", "logits"] = "probabilities"
    mask_heads: int = 1
    proposals: Proposals = field(default_factory=Proposals)


M = TypeVar("M", bound=nn.Module)


def with_thresholds(module: M, thresholds: Thresholds) -> M:
    """A copy of a network that contains NMS, with other thresholds; any other network is returned unchanged."""
    if not isinstance(module, MaskRcnn):
        return module
    new = shared_copy(module)
    new.thresholds = thresholds
    new.nms_conf, new.nms_iou = torch.tensor([thresholds.conf]), torch.tensor([thresholds.iou])
    return new


class RoiHeads(nn.Module):
    """What follows the proposals. Keys are detectron2's; those of a cascade have the number of the stage in them."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config = config
        heads = [BoxHead(config.channels, config.box_convs, config.norm, config.features) for _ in config.weights]
        predictors = [
            BoxPredictor(config.features, config.num_classes, weights, agnostic=config.agnostic)
            for weights in config.weights
        ]
        one = len(heads) == 1
        self.box_head: nn.Module = heads[0] if one else nn.ModuleList(heads)
        self.box_predictor: nn.Module = predictors[0] if one else nn.ModuleList(predictors)
        masks = [
            MaskHead(config.channels, config.mask_convs, config.norm, config.num_classes)
            for _ in range(config.mask_heads)
        ]
        self.mask_head: nn.Module = masks[0] if len(masks) == 1 else nn.ModuleList(masks)
        self.box_pooler, self.mask_pooler = RoiPooler(size=7), RoiPooler(size=14)

    def stages(self) -> list[tuple[nn.Module, BoxPredictor]]:
        """A head and its predictor for each stage."""
        if isinstance(self.box_predictor, BoxPredictor):
            return [(self.box_head, self.box_predictor)]
        assert isinstance(self.box_head, nn.ModuleList)
        assert isinstance(self.box_predictor, nn.ModuleList)
        return list(zip(self.box_head, self.box_predictor, strict=True))  # type: ignore[arg-type]  # Modules they are

    def classified(
        self, levels: tuple[Tensor, ...], boxes: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities ``(B, N, classes)``, and of the last stage the boxes it was given and its deltas.

        ``(B, N, 4)`` and ``(B, N, classes or 1, 4)``. A cascade moves the boxes after each stage but the last, and its
        probabilities are the mean of the stages', or those of the mean logits.
        """
        of_logits = self.config.averaged == "logits"
        batch, count = boxes.shape[:2]
        stages, total = self.stages(), None
        for i, (head, predictor) in enumerate(stages):
            features = head(self.box_pooler(levels, boxes))
            shares, deltas = predictor(features)
            if of_logits:
                shares = predictor.cls_score(features)
            shares, deltas = shares.reshape(batch, count, -1), deltas.reshape(batch, count, -1, 4)
            total = shares if total is None else total + shares
            if i + 1 < len(stages):
                boxes = clipped(moved(boxes, deltas[:, :, 0], predictor.weights), height, width)
        assert total is not None
        mean = total / len(stages)
        return (mean.softmax(-1) if of_logits else mean)[..., :-1], boxes, deltas

    def masks(self, levels: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """The masks of each box's class, ``(B, M, 28, 28)`` in 0..1."""
        batch, count = labels.shape
        cells = self.mask_pooler(levels, boxes)
        heads = list(self.mask_head) if isinstance(self.mask_head, nn.ModuleList) else [self.mask_head]
        found = []
        for head in heads:
            logits = head(cells)
            index = labels.reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
            found.append(torch.gather(logits, 1, index).sigmoid().reshape(batch, count, *logits.shape[2:]))
        return found[0] if len(found) == 1 else torch.stack(found).mean(0)


class ProposalGenerator(nn.Module):
    """The head of the proposals, where detectron2 has it."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.rpn_head = RpnHead(config.channels, config.rpn_convs)


class MaskRcnn(nn.Module):
    """``(B, 3, H, W)`` to detections as :class:`deploykit.spec.NmsOutputs` has them, and their masks.

    ``num_dets (B, 1) int32, boxes (B, M, 4) xyxy, scores (B, M), labels (B, M) int32, masks (B, M, 28, 28),
    num_candidates (B, 1) int32``; what is not used is zero. Boxes are clipped to the whole canvas.
    """

    nms_conf: Tensor
    nms_iou: Tensor

    def __init__(self, backbone: nn.Module, config: HeadsConfig, thresholds: Thresholds = THRESHOLDS) -> None:
        super().__init__()
        self.config, self.thresholds = config, thresholds
        self.backbone = backbone
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = RoiHeads(config)
        self.register_buffer("nms_conf", torch.tensor([thresholds.conf]), persistent=False)
        self.register_buffer("nms_iou", torch.tensor([thresholds.iou]), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[2:]
        levels = self.backbone(images)
        boxes, logits = self.config.proposals.choose(self.proposal_generator.rpn_head, levels, height, width)
        shares, boxes, deltas = self.roi_heads.classified(levels, boxes, height, width)
        scores = torch.where((logits > MISSING)[..., None], shares, NONE)
        return self.detected(levels, boxes, deltas, scores, (height, width))

    def detected(
        self, levels: tuple[Tensor, ...], boxes: Tensor, deltas: Tensor, scores: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, ...]:
        """The best of all pairs of a proposal and a class, NMS within classes, and masks of what stays."""
        classes, most = scores.shape[2], self.thresholds.max_det
        pairs = scores.flatten(1)
        best, index = best_scores(pairs, min(self.thresholds.pre_nms_topk, pairs.shape[1]))
        rows, labels = index // classes, index % classes
        of_class = torch.zeros_like(labels) if deltas.shape[2] == 1 else labels
        flat = (rows * deltas.shape[2] + of_class)[..., None].expand(-1, -1, 4)
        own = torch.gather(boxes, 1, rows[..., None].expand(-1, -1, 4))
        found = clipped(moved(own, torch.gather(deltas.flatten(1, 2), 1, flat), self.config.weights[-1]), *size)
        kept = keep_best(found, labels, best > self.nms_conf, self.nms_iou, classes)
        top, place = best_scores(torch.where(kept, best, NONE), min(most, kept.shape[1]))
        used = top > self.nms_conf
        found = torch.where(used[..., None], torch.gather(found, 1, place[..., None].expand(-1, -1, 4)), 0.0)
        labels = torch.where(used, torch.gather(labels, 1, place), 0)
        masks = torch.where(used[..., None, None], self.roi_heads.masks(levels, found, labels), 0.0)
        count = used.sum(1, keepdim=True).int()
        candidates = (pairs > self.nms_conf).sum(1, keepdim=True).int()
        return count, found, torch.where(used, top, 0.0), labels.int(), masks, candidates
