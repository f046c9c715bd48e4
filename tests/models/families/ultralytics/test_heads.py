"""The heads as modules: names of their tensors, branches, folds, random weights, and exports."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.ultralytics.heads.classify import Classify
from deploykit.models.families.ultralytics.heads.detect import Branch, FreeDetect
from deploykit.models.families.ultralytics.heads.pose import FreePose, Pose26
from deploykit.models.families.ultralytics.heads.segment import Segment, Segment26
from deploykit.models.fuse import fuse_model
from tests.models.families.ultralytics.small_heads import HEADS, features, rows_of, seeded

BRANCHES: tuple[Branch, ...] = ("one2many", "one2one")
CONV = ("conv.weight", *(f"bn.{name}" for name in ("weight", "bias", "running_mean", "running_var")))
PLAIN = ("weight", "bias")
BRANCH = {"0": CONV, "1": CONV, "2": PLAIN}
SEPARABLE = {"0.0": CONV, "0.1": CONV, "1.0": CONV, "1.1": CONV, "2": PLAIN}
PROTO = {"cv1": CONV, "upsample": PLAIN, "cv2": CONV, "cv3": CONV}
NAMES: dict[str, dict[str, dict[str, tuple[str, ...]]]] = {
    "detect": {"cv2": BRANCH, "cv3": BRANCH},
    "depthwise": {"cv2": BRANCH, "cv3": SEPARABLE},
    "v10": {"cv2": BRANCH, "cv3": SEPARABLE},
    "26": {"cv2": BRANCH, "cv3": SEPARABLE},
    "pose": {"cv2": BRANCH, "cv3": BRANCH, "cv4": BRANCH},
    "pose26": {"cv2": BRANCH, "cv3": SEPARABLE, "cv4": {"0": CONV, "1": CONV}, "cv4_kpts": {"": PLAIN}},
    "segment": {"cv2": BRANCH, "cv3": BRANCH, "cv4": BRANCH},
    "segment26": {"cv2": BRANCH, "cv3": SEPARABLE, "cv4": BRANCH},
    "oriented": {"cv2": BRANCH, "cv3": BRANCH, "cv4": BRANCH},
    "oriented26": {"cv2": BRANCH, "cv3": SEPARABLE, "cv4": BRANCH},
}


def expected_names(name: str, head: FreeDetect) -> set[str]:
    prefixes = ("", "one2one_") if head.dual else ("",)
    found = {
        f"{prefix}{part}.{level}.{where}.{tensor}".replace("..", ".")
        for prefix in prefixes
        for part, layers in NAMES[name].items()
        for level in range(3)
        for where, tensors in layers.items()
        for tensor in tensors
    }
    if head.reg_max > 1:
        found.add("dfl.conv.weight")
    if "segment" in name:
        layers = PROTO | ({"feat_refine.0": CONV, "feat_refine.1": CONV, "feat_fuse": CONV} if "26" in name else {})
        found |= {f"proto.{where}.{tensor}" for where, tensors in layers.items() for tensor in tensors}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_tensors_have_the_names_of_the_original(name: str) -> None:
    head = HEADS[name]()
    names = {key for key in head.state_dict() if not key.endswith("num_batches_tracked")}
    assert names == expected_names(name, head)


def widths(head: nn.Module, part: str) -> list[tuple[int, ...]]:
    return [tuple(conv.weight.shape[:2]) for conv in getattr(head, part)[0].modules() if isinstance(conv, nn.Conv2d)]


def test_branches_are_as_wide_as_the_originals() -> None:
    """Of YOLOv8n, YOLO11m of 1 class, YOLO26m and m-pose, and files of before 8.1 with 601 classes."""
    n = FreeDetect(80, (64, 128, 256))
    assert widths(n, "cv2") == [(64, 64), (64, 64), (64, 64)]
    assert widths(n, "cv3") == [(80, 64), (80, 80), (80, 80)]
    m = FreeDetect(1, (256, 512, 512), depthwise=True)
    assert widths(m, "cv3") == [(256, 1), (256, 256), (256, 1), (256, 256), (1, 256)]
    assert widths(FreeDetect(80, (256, 512, 512), reg_max=1), "cv2") == [(64, 256), (64, 64), (4, 64)]
    assert widths(FreeDetect(601, (64, 128, 256)), "cv3") == [(100, 64), (100, 100), (601, 100)]
    assert widths(FreeDetect(601, (64, 128, 256), class_width=601), "cv3") == [(601, 64), (601, 601), (601, 601)]
    assert widths(FreePose(1, (64, 128, 256)), "cv4") == [(51, 64), (51, 51), (51, 51)]
    assert widths(Pose26(1, (256, 512, 512)), "cv4") == [(85, 256), (85, 85)]
    assert widths(Pose26(1, (256, 512, 512)), "cv4_kpts") == [(51, 85)]
    assert widths(Segment(80, (192, 384, 576)), "cv4") == [(48, 192), (48, 48), (32, 48)]


def test_parameters_of_a_classifier() -> None:
    head = Classify(1000, 256)
    assert set(dict(head.named_parameters())) == {
        "conv.conv.weight",
        "conv.bn.weight",
        "conv.bn.bias",
        "linear.weight",
        "linear.bias",
    }
    assert sum(p.numel() for p in head.parameters()) == 256 * 1280 + 2 * 1280 + 1280 * 1000 + 1000


@pytest.mark.parametrize("name", HEADS)
def test_a_folded_head_computes_the_same_and_keeps_one_branch(name: str) -> None:
    head, inputs = seeded(HEADS[name]), features(2, 96, 128)
    for branch in BRANCHES if head.dual else BRANCHES[:1]:
        chosen = head.with_branch(branch)
        folded = fuse_model(chosen)
        assert isinstance(folded, FreeDetect)
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
        prefix = "one2one_" if branch == "one2one" else ""
        wanted = {prefix + part for part in NAMES.get(name, NAMES["pose26" if "26" in name else "pose"])}
        assert {key.split(".")[0] for key in folded.state_dict()} - {"dfl", "proto"} == wanted
        expected, found = rows_of(chosen, inputs), rows_of(folded, inputs)
        assert torch.equal(rows_of(chosen.alone(), inputs), expected)
        assert found.shape[2] == folded.columns
        assert torch.allclose(found, expected, rtol=1e-4, atol=2e-3)
        assert folded.with_branch(folded.branch).columns == folded.columns
        other = BRANCHES[branch == "one2many"]
        with pytest.raises(ValueError, match=re.escape(f"the head has the branch {branch} only, not {other}")):
            folded.with_branch(other)


def test_the_two_branches_are_two() -> None:
    head, inputs = seeded(HEADS["26"]), features(1, 64, 64)
    assert head.branch == "one2one"
    many = head.with_branch("one2many")
    head.one2one_cv3[0][-1].bias.add_(1)
    before = rows_of(many, inputs)
    assert rows_of(head, inputs).shape == (1, 84, 6)
    assert before.shape == (1, 84, 7)
    head.cv3[0][-1].bias.add_(1)  # the modules are shared
    assert not torch.equal(rows_of(many, inputs)[..., 4:], before[..., 4:])
    assert torch.equal(rows_of(many, inputs)[..., :4], before[..., :4])


@pytest.mark.parametrize("name", HEADS)
def test_random_weights_give_finite_rows_with_boxes(name: str) -> None:
    head = seeded(HEADS[name])
    for branch in BRANCHES if head.dual else BRANCHES[:1]:
        rows = rows_of(head.with_branch(branch), features(2, 256, 256))
        assert rows.isfinite().all()
        scores = rows[..., 4:5] if branch == "one2one" else rows[..., 4 : 4 + head.num_classes]
        assert float((scores.amax(2) > 0.25).float().mean()) < 0.25
        if branch == "one2many":
            assert float((rows[..., 2:4] > 0).float().mean()) > 0.9


@pytest.mark.parametrize("depthwise", [False, True])
def test_random_weights_give_rare_detections(depthwise: bool) -> None:
    channels = (64, 128, 256)
    head = seeded(lambda: FreeDetect(80, channels, depthwise=depthwise))
    rows = rows_of(head, features(1, 256, 256, channels=channels))
    assert 0.001 < float((rows[..., 4:].amax(2) > 0.25).float().mean()) < 0.1


def test_a_random_classifier_tells_images_apart() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = Classify(10, 16).eval()
        randomise(head)
    with torch.no_grad():
        logits = head(torch.randn(8, 16, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (8, 10)
    assert float(logits.std(0).mean()) > 0.1
    folded = fuse_model(head)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_prototypes_of_a_mask() -> None:
    """Nearest cells of the coarser maps are added to the finest, once as coarse and twice as coarse."""
    head = seeded(HEADS["segment26"])
    assert isinstance(head, Segment26)
    inputs = features(2, 64, 96)
    _, found = head(*inputs)
    assert found.shape == (2, 6, 16, 24)
    proto = head.proto
    mixed = inputs[0].clone()
    for level, factor in ((0, 2), (1, 4)):
        refined = proto.feat_refine[level](inputs[1 + level])
        for y in range(8):
            for x in range(12):
                mixed[:, :, y, x] += refined[:, :, y // factor, x // factor]
    expected = super(type(proto), proto).forward(proto.feat_fuse(mixed))
    assert torch.allclose(found, expected, atol=1e-5)
