"""Detectors in two stages: each part against its definition, and the whole of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploykit.models.families.vitdet.mask_rcnn import CASCADE, HeadsConfig, MaskRcnn, with_thresholds
from deploykit.models.families.vitdet.two_stage import (
    MISSING,
    Proposals,
    RoiPooler,
    RpnHead,
    anchors_of,
    clipped,
    moved,
)
from deploykit.models.layers.operators import best_scores, keep_best, roi_align
from deploykit.runtime.postprocess.nms import suppress
from deploykit.spec import Thresholds
from tests.models.families.test_vitdet import detector
from tests.reference import two_stage as reference

WIDE = torch.float64


def boxes_of(count: int, seed: int, size: float = 64.0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=chance, dtype=WIDE) * size * 1.2 - size * 0.1
    return torch.cat((corners.amin(1), corners.amax(1)), 1)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([2, 3, 7]))
def test_roi_align_is_the_mean_of_its_samples(seed: int, size: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    levels = [torch.randn(2, 3, 64 // s, 48 // s, generator=chance, dtype=WIDE) for s in (4, 8)]
    boxes = boxes_of(6, seed)
    boxes[0] = torch.tensor([10.0, 10.0, 10.0, 30.0])  # no width: no samples
    images, level = (torch.randint(0, 2, (6,), generator=chance) for _ in range(2))
    found = roi_align(levels, boxes, images, level, [4, 8], size)
    for i in range(6):
        expected = reference.roi_align(levels[level[i]][images[i]], boxes[i], (4, 8)[level[i]], size)
        assert (found[i] - expected).abs().max() < 1e-12
    assert not found[0].any()


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_nms_keeps_what_no_better_one_of_its_group_overlaps(seed: int, threshold: float) -> None:
    chance = torch.Generator().manual_seed(seed)
    boxes = boxes_of(24, seed, 20.0)
    boxes[3] = boxes[1]
    boxes[5, 2:] = boxes[5, :2]  # without area
    groups = torch.randint(0, 3, (24,), generator=chance)
    exists = torch.rand(24, generator=chance) < 0.8
    found = keep_best(boxes[None], groups[None], exists[None], torch.tensor([threshold], dtype=WIDE), 3)
    assert found[0].tolist() == reference.kept(boxes, groups, exists, threshold)
    narrow = boxes[exists].float()  # and in float32 what the runtime's own definition keeps, bit for bit
    every = torch.ones(1, len(narrow), dtype=torch.bool)
    kept = keep_best(narrow[None], groups[exists][None], every, torch.tensor([threshold]), 3)[0]
    with np.errstate(invalid="ignore"):
        expected = suppress(narrow.numpy(), groups[exists].numpy(), threshold, 100)
    assert torch.nonzero(kept)[:, 0].tolist() == expected.tolist()


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_groups_may_come_in_any_order_but_their_own(seed: int) -> None:
    """So proposals of several levels need no common order, which would be a TopK of more than TensorRT computes."""
    chance = torch.Generator().manual_seed(seed)
    boxes, groups = boxes_of(24, seed, 20.0), torch.randint(0, 3, (24,), generator=chance)
    by_group = torch.argsort(groups, stable=True)
    exists, iou = torch.ones(1, 24, dtype=torch.bool), torch.tensor([0.5], dtype=WIDE)
    kept = keep_best(boxes[None], groups[None], exists, iou, 3)[0]
    assert torch.equal(keep_best(boxes[by_group][None], groups[by_group][None], exists, iou, 3)[0], kept[by_group])


@settings(max_examples=50)
@given(st.floats(0.1, 5000), st.floats(0.1, 5000))
def test_a_box_is_looked_up_on_the_level_of_its_size(width: float, height: float) -> None:
    box = torch.tensor([3.0, 5.0, 3.0 + width, 5.0 + height], dtype=WIDE)
    side = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1])))
    if min(abs(side / (224 * 2**k) - 1) for k in (-1, 0, 1)) > 1e-6:  # there the published formula adds an epsilon
        assert int(RoiPooler().level(box)) == reference.level(box)


def test_anchors_lie_around_the_corners_of_cells() -> None:
    anchors = anchors_of(2, 3, 16, 32)
    assert anchors.shape == (18, 4)
    middle = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert middle.view(2, 3, 3, 2)[1, 2].tolist() == [[32.0, 16.0]] * 3
    sides = anchors[:, 2:] - anchors[:, :2]
    assert torch.allclose(sides.prod(1), torch.tensor(1024.0))
    assert torch.allclose(sides[:3, 1] / sides[:3, 0], torch.tensor([0.5, 1.0, 2.0]))


def test_boxes_are_moved_and_clipped() -> None:
    boxes, deltas = boxes_of(20, 0), torch.randn(20, 4, dtype=WIDE) * 20
    weights = (10.0, 10.0, 5.0, 5.0)
    found = moved(boxes, deltas, weights)
    expected = torch.stack([reference.moved(b, d, weights) for b, d in zip(boxes, deltas, strict=True)])
    assert torch.allclose(found, expected, rtol=1e-12)
    inside = clipped(found, 40, 64)
    assert inside[:, ::2].min() >= 0
    assert inside[:, ::2].max() <= 64
    assert inside[:, 1::2].max() <= 40


def test_proposals_are_the_best_of_each_level() -> None:
    """Against a walk over levels, boxes and NMS one by one."""
    torch.manual_seed(0)
    head = RpnHead(4).double().eval()
    levels = [torch.randn(1, 4, 16 >> i, 16 >> i, dtype=WIDE) * 3 for i in range(3)]
    chosen = Proposals((4, 8, 16), (16, 32, 64), before=12, after=20, iou=0.5)
    with torch.no_grad():
        boxes, logits = chosen.choose(head, levels, 64, 64)
        every = []
        for i, (x, stride, side) in enumerate(zip(levels, chosen.strides, chosen.sides, strict=True)):
            scores, deltas = head(x)
            anchors = anchors_of(*x.shape[2:], stride, side).to(WIDE)
            order = scores[0].argsort(descending=True)[:12].tolist()
            every += [(float(scores[0, j]), i, reference.moved(anchors[j], deltas[0, j], (1, 1, 1, 1))) for j in order]
    every.sort(key=lambda one: -one[0])
    all_boxes = clipped(torch.stack([box for *_, box in every]), 64, 64)
    exists = (all_boxes[:, 2:] > all_boxes[:, :2]).all(1)
    groups = torch.tensor([i for _, i, _ in every])
    kept = [i for i, keep in enumerate(reference.kept(all_boxes, groups, exists, 0.5)) if keep][:20]
    used = int((logits[0] > MISSING).sum())
    assert used == len(kept) > 5
    assert torch.allclose(logits[0, :used], torch.tensor([every[i][0] for i in kept], dtype=WIDE))
    assert torch.allclose(boxes[0, :used], all_boxes[kept])
    assert not boxes[0, used:].any()


def test_equal_scores_keep_their_order() -> None:
    values, index = best_scores(torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]]), 4)
    assert values.tolist() == [[3.0, 3.0, 3.0, 2.0]]
    assert index.tolist() == [[1, 2, 4, 3]]


@pytest.mark.parametrize("weights", [HeadsConfig().weights, CASCADE], ids=["plain", "cascade"])
def test_detections_follow_from_the_parts(weights: tuple[tuple[float, ...], ...]) -> None:
    """The whole detector against its own heads called by hand on each proposal."""
    network = detector(weights=weights).double()
    images = torch.randn(1, 3, 64, 64, dtype=WIDE)
    with torch.no_grad():
        count, boxes, scores, labels, masks, candidates = network(images)
        levels = network.backbone(images)
        rpn = network.proposal_generator.rpn_head
        proposals, logits = network.config.proposals.choose(rpn, levels, 64, 64)
        pairs = []
        for i in range(int((logits[0] > MISSING).sum())):
            box, total = proposals[0, i], torch.zeros(network.config.num_classes, dtype=WIDE)
            for k, (head, predictor) in enumerate(network.roi_heads.stages()):
                level = reference.level(box)
                shares, deltas = predictor(head(reference.roi_align(levels[level][0], box, 4 << level, 7)[None]))
                total += shares[0, :-1] / len(weights)
                if k + 1 < len(weights):
                    box = clipped(reference.moved(box, deltas[0, 0], weights[k]), 64, 64)
            for label in range(network.config.num_classes):
                own = deltas[0, 0 if deltas.shape[1] == 1 else label]
                pairs.append((float(total[label]), label, clipped(reference.moved(box, own, weights[-1]), 64, 64)))
    pairs.sort(key=lambda pair: -pair[0])
    limits = network.thresholds
    assert int(candidates) == sum(score > limits.conf for score, *_ in pairs)
    pairs = pairs[: limits.pre_nms_topk]
    exists = torch.tensor([score > limits.conf for score, *_ in pairs])
    groups, every = torch.tensor([label for _, label, _ in pairs]), torch.stack([box for *_, box in pairs])
    kept = [i for i, keep in enumerate(reference.kept(every, groups, exists, limits.iou)) if keep][: limits.max_det]
    used = int(count)
    assert used == len(kept) > 3
    assert torch.allclose(scores[0, :used], torch.tensor([pairs[i][0] for i in kept], dtype=WIDE))
    assert labels[0, :used].tolist() == [pairs[i][1] for i in kept]
    assert torch.allclose(boxes[0, :used], every[kept])
    with torch.no_grad():
        for i in range(used):
            level = reference.level(boxes[0, i])
            cut = reference.roi_align(levels[level][0], boxes[0, i], 4 << level, 14)
            expected = network.roi_heads.mask_head(cut[None])[0, labels[0, i]].sigmoid()
            assert (masks[0, i] - expected).abs().max() < 1e-9
    assert not any(part[0, used:].any() for part in (boxes, scores, labels, masks))


def test_thresholds_are_replaced() -> None:
    network = detector()
    assert with_thresholds(network.backbone, Thresholds()) is network.backbone
    images = torch.randn(2, 3, 64, 64)
    few = with_thresholds(network, Thresholds(conf=0.0, iou=0.1, max_det=3, pre_nms_topk=50))
    assert isinstance(few, MaskRcnn)
    assert few(images)[1].shape == (2, 3, 4)
    assert network(images)[1].shape == (2, 20, 4)
    assert float(few.nms_iou) == pytest.approx(0.1)
